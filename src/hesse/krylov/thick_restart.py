# SPDX-License-Identifier: Apache-2.0
"""The Lanczos method with thick restarts.

When the basis is full, the best Ritz vectors are kept and the iteration continues from them: memory
is bounded whatever the accuracy. From one starting vector only one vector of each eigenspace can be
found, from a given one perhaps none of some. So when all wanted pairs have converged, steps from a
random direction orthogonal to the basis search for a missed eigenvalue (decision 11). If there is
one, the pairs are locked, and the iteration restarts from the vector that was found.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hesse.checkpoint import Checkpoint
from hesse.errors import Status
from hesse.krylov.basis import orthonormalise, permute
from hesse.krylov.eigenpairs import Eigenpairs, Ritz, Selection, verify
from hesse.krylov.lanczos_process import LanczosProcess
from hesse.progress import Run, uninterrupted

# The length of a search. A missed eigenvalue is found after about as many steps as its neighbours
# were: at once where convergence took few steps, later where it took many. A given start does not
# tell how many.
_SEARCH, _GIVEN, _QUICK = 4, 40, 20
# A search ends earlier if the residual of its best value is below this fraction of the distance to
# the wanted values. It continues for at most so many steps while that value may become wanted.
_SETTLED, _LATE = 0.3, 8


@dataclass
class LanczosState:
    """What a callback sees after every step: the wanted Ritz values and their residuals so far."""

    lanczos: LanczosProcess
    values: Tensor = field(default_factory=lambda: torch.zeros(0))
    residuals: Tensor = field(default_factory=lambda: torch.zeros(0))
    coordinates: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    """Of the wanted Ritz vectors, as columns."""
    search_from: int = 0
    search_until: int = 0
    """The products between which others are looked for; 0 while not looking."""
    new: Tensor = field(default_factory=lambda: torch.zeros(0))
    """The fraction of each row that is new since the search began; 1 for later rows."""
    status: Status = Status.UNFINISHED

    @property
    def products(self) -> int:
        """Products taken so far."""
        return self.lanczos.products


@dataclass
class ThickRestart:
    """Eigenpairs from a basis of m vectors, of which `keep` survive a restart."""

    selection: Selection
    m: int
    keep: int
    search: bool
    is_given: bool = False
    """Whether the start was given, and not random."""

    def solve(
        self, lanczos: LanczosProcess, run: Run, checkpoint: Checkpoint, at_once: int
    ) -> Eigenpairs:
        """The wanted pairs, with residuals of their own."""
        state = LanczosState(lanczos)
        checkpoint.resume(state)
        if state.status is Status.CONVERGED:
            run.status = state.status
        else:
            with run:
                run.status = self._iterate(state, run, checkpoint)
        state.status = run.status
        checkpoint.save(state, now=True)
        if lanczos.size == 0:
            raise KeyboardInterrupt
        return self._pairs(state, at_once, run.left(lanczos.products))

    def _pairs(self, state: LanczosState, at_once: int, most: float) -> Eigenpairs:
        """The wanted Ritz pairs, verified by so many products at most."""
        lanczos, status = state.lanczos, state.status
        best_first = state.residuals.argsort()
        vectors = lanczos.combine(state.coordinates)
        orthonormalise(lanczos.A, vectors, rank=best_first)
        largest = float(lanczos.ritz()[0].abs().max())
        ritz = Ritz(state.values, vectors, state.residuals, largest)
        known = lanczos.basis.is_exact
        found = verify(lanczos.A, ritz, self.selection, at_once, most, known=known)
        order = found.values.argsort()
        permute(vectors, order)
        if status in (Status.CONVERGED, Status.STAGNATED):
            status = Status.CONVERGED if bool(found.converged.all()) else Status.STAGNATED
        return Eigenpairs(
            found.values[order],
            vectors.T,
            found.residuals[order],
            found.converged[order],
            lanczos.products + found.products,
            status,
        )

    def _iterate(self, state: LanczosState, run: Run, checkpoint: Checkpoint) -> Status:
        lanczos, converged = state.lanczos, False
        while lanczos.size == 0 or run.goes_on(state):
            lanczos.step(min(lanczos.b, self.m - lanczos.size))
            if state.search_until:
                converged = not self._finds_another(state)
                if converged and self._search_is_over(state):
                    return Status.CONVERGED
            else:
                converged, whole = self._update_ritz(state), lanczos.size == lanczos.A.domain.n
                if converged and (not self.search or whole):
                    return Status.CONVERGED
                if whole:  # no row can be added
                    return Status.STAGNATED
            if not run.after_step(state):
                break
            with uninterrupted():
                self._make_room(state, converged)
            checkpoint.save(state)
        return run.status

    def _make_room(self, state: LanczosState, converged: bool) -> None:
        """Begin to search if converged, or restart if the basis is full."""
        if converged and not state.search_until:
            self._begin_search(state)
        elif state.lanczos.size == self.m and state.search_until:
            self._restart_search(state)
        elif state.lanczos.size == self.m:
            self._restart(state, self.keep)

    def _update_ritz(self, state: LanczosState) -> bool:
        """Compute the wanted Ritz pairs; whether all have converged."""
        values, coordinates, residuals = state.lanczos.ritz()
        best = self.selection.among(values)
        state.values, state.residuals = values[best], residuals[best]
        state.coordinates = coordinates[:, best]
        tolerance = self.selection.tolerance(state.values, float(values.abs().max()))
        return len(best) == self.selection.k and bool((state.residuals <= tolerance).all())

    def _restart(self, state: LanczosState, keep: int) -> None:
        """Make room: keep the best Ritz vectors, the wanted ones among them."""
        values, coordinates, residuals = state.lanczos.ritz()
        best, kept = self.selection.among(values), self.selection.among(values, keep)
        kept = kept[residuals[kept].argsort()]
        state.lanczos.restart(coordinates[:, kept], values[kept])
        state.coordinates = (kept[:, None] == best).double()

    def _restart_search(self, state: LanczosState) -> None:
        """Make room: keep the wanted vectors as they are, and the best new ones."""
        lanczos, order, size = state.lanczos, state.residuals.argsort(), state.lanczos.size
        known = torch.zeros(size, len(order), dtype=torch.float64)
        known[: len(state.coordinates)] = state.coordinates[:, order]
        # Ritz vectors orthogonal to those: for equal values the old and the new would be mixed.
        others = torch.linalg.qr(known, mode="complete").Q[:, len(order) :]
        values, coordinates = torch.linalg.eigh(others.T @ lanczos.T[:size, :size] @ others)
        coordinates = others @ coordinates
        share = _new(state, coordinates)
        new = (share > 0.5).nonzero()[:, 0]
        best = new[self.selection.among(values[new], self.keep - self.selection.k)]
        kept = torch.cat([known, coordinates[:, best]], dim=1)
        lanczos.restart(kept, torch.cat([state.values[order], values[best]]))
        state.new = torch.cat([torch.zeros_like(state.values), share[best]])
        state.coordinates = torch.eye(kept.shape[1], dtype=torch.float64)[:, order.argsort()]

    def _begin_search(self, state: LanczosState) -> None:
        """Continue from random directions, for some steps."""
        lanczos = state.lanczos
        least = min(_SEARCH * lanczos.b, self.m - self.selection.k)
        if lanczos.size + least > self.m:
            self._restart(state, self.m - least)
        lanczos.explore()
        state.new = torch.zeros(lanczos.size, dtype=torch.float64)
        state.search_from = state.products
        enough = max(_GIVEN if self.is_given else _SEARCH, state.products // lanczos.b - _QUICK)
        state.search_until = state.products + lanczos.b * enough

    def _search_is_over(self, state: LanczosState) -> bool:
        """Whether the search is over: at its limit, or because no new value is wanted."""
        lanczos, selection = state.lanczos, self.selection
        taken = state.products - state.search_from
        late = state.products - state.search_until
        if lanczos.size == lanczos.A.domain.n or late >= _LATE * lanczos.b:
            return True
        if taken < min(_SEARCH * lanczos.b, self.m - selection.k):
            return False
        values, coordinates, residuals = lanczos.ritz()
        is_new = _new(state, coordinates) > 0.5
        if not bool(is_new.any()):
            return False
        others, residuals = values[is_new], residuals[is_new]
        best = selection.ends(others)
        distance = selection.distance(others[best], state.values)
        enough = _SETTLED if late < 0 else 1.0
        return bool((residuals[best] <= enough * distance).all())

    def _finds_another(self, state: LanczosState) -> bool:
        """Whether another wanted value was found; then lock the converged pairs and restart."""
        lanczos = state.lanczos
        values, coordinates, _ = lanczos.ritz()
        best = self.selection.among(values)
        tolerance = self.selection.tolerance(state.values, float(values.abs().max()))
        if bool(((values[best] - state.values).abs() <= tolerance).all()):
            return False
        k, known = len(best), len(state.coordinates)
        old = coordinates[:known, best].T @ state.coordinates  # (k, k): the part that is not new
        new = best[old.norm(dim=1).argsort()[: lanczos.b]]
        start = lanczos.combine(coordinates[:, new])
        best_first = state.residuals.argsort()
        with uninterrupted():
            lanczos.lock(state.coordinates[:, best_first], state.values[best_first], start)
            state.coordinates = torch.eye(k, dtype=torch.float64)[:, best_first.argsort()]
            state.search_until = 0
        return True


def _new(state: LanczosState, coordinates: Tensor) -> Tensor:
    """The fraction of each Ritz vector that is new since the search began."""
    rest = len(coordinates) - len(state.new)
    return torch.cat([state.new, torch.ones(rest, dtype=torch.float64)]) @ coordinates**2
