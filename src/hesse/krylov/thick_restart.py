# SPDX-License-Identifier: Apache-2.0
"""The Lanczos method with thick restarts.

When the basis is full, the best Ritz vectors are kept and the iteration goes on from them: memory
is bounded whatever the accuracy. One starting vector sees one vector of each eigenspace only, and
a given one perhaps not all of them; so when all wanted pairs have converged, steps from a random
direction orthogonal to all that was seen look for an eigenvalue that was missed (decision 11). If
there is one, the pairs are locked, and the iteration begins anew from what was found.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hesse.checkpoint import Checkpoint
from hesse.errors import Status
from hesse.krylov.basis import orthonormalise, permute
from hesse.krylov.eigenpairs import Eigenpairs, Ritz, Wanted, verified
from hesse.krylov.lanczos import Lanczos
from hesse.progress import Run, uninterrupted

# A missed eigenvalue shows as soon as those beside it do: at once where few steps were enough for
# convergence, after about as many where it took many. A given start says nothing of that.
_SEARCH, _GIVEN, _QUICK = 4, 40, 20
# It is over earlier if the best that it sees is known to this share of its distance to the wanted,
# and goes on for so many steps at most if that may yet turn out to be one of them.
_SETTLED, _LATE = 0.3, 8


@dataclass
class LanczosState:
    """What a callback sees after every step: the wanted Ritz values and their residuals so far."""

    lanczos: Lanczos
    values: Tensor = field(default_factory=lambda: torch.zeros(0))
    residuals: Tensor = field(default_factory=lambda: torch.zeros(0))
    coordinates: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    """Of the wanted Ritz vectors, as columns."""
    search_from: int = 0
    search_until: int = 0
    """The products between which others are looked for; 0 while not looking."""
    new: Tensor = field(default_factory=lambda: torch.zeros(0))
    """How much of each row was not known when the search began; all of those that follow."""
    status: Status = Status.UNFINISHED

    @property
    def products(self) -> int:
        """Products taken so far."""
        return self.lanczos.products


@dataclass
class ThickRestart:
    """Eigenpairs from a basis of m vectors, of which `keep` survive a restart."""

    wanted: Wanted
    m: int
    keep: int
    search: bool
    is_given: bool = False
    """Whether the start was given, and not random."""

    def solve(self, lanczos: Lanczos, run: Run, checkpoint: Checkpoint, at_once: int) -> Eigenpairs:
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
        found = verified(lanczos.A, ritz, self.wanted, at_once, most, known=known)
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
                if converged and self._has_seen_enough(state):
                    return Status.CONVERGED
            else:
                converged, whole = self._look(state), lanczos.size == lanczos.A.shape[1]
                if converged and (not self.search or whole):
                    return Status.CONVERGED
                if whole:  # there is nothing to add
                    return Status.STAGNATED
            if not run.after_step(state):
                break
            with uninterrupted():
                self._make_room(state, converged)
            checkpoint.save(state)
        return run.status

    def _make_room(self, state: LanczosState, converged: bool) -> None:
        """Begin to search, or restart, if it is time to."""
        if converged and not state.search_until:
            self._begin_search(state)
        elif state.lanczos.size == self.m and state.search_until:
            self._restart_search(state)
        elif state.lanczos.size == self.m:
            self._restart(state, self.keep)

    def _look(self, state: LanczosState) -> bool:
        """See what the wanted Ritz pairs are now, and whether all have converged."""
        values, coordinates, residuals = state.lanczos.ritz()
        best = self.wanted.among(values)
        state.values, state.residuals = values[best], residuals[best]
        state.coordinates = coordinates[:, best]
        tolerance = self.wanted.tolerance(state.values, float(values.abs().max()))
        return len(best) == self.wanted.k and bool((state.residuals <= tolerance).all())

    def _restart(self, state: LanczosState, keep: int) -> None:
        """Make room: keep the best Ritz vectors, the wanted ones among them."""
        values, coordinates, residuals = state.lanczos.ritz()
        best, kept = self.wanted.among(values), self.wanted.among(values, keep)
        kept = kept[residuals[kept].argsort()]
        state.lanczos.restart(coordinates[:, kept], values[kept])
        state.coordinates = (kept[:, None] == best).double()

    def _restart_search(self, state: LanczosState) -> None:
        """Make room: keep the wanted vectors as they are, and the best of what is new."""
        lanczos, order, size = state.lanczos, state.residuals.argsort(), state.lanczos.size
        known = torch.zeros(size, len(order), dtype=torch.float64)
        known[: len(state.coordinates)] = state.coordinates[:, order]
        # Ritz vectors orthogonal to those: equal values would mix the old with the new.
        others = torch.linalg.qr(known, mode="complete").Q[:, len(order) :]
        values, coordinates = torch.linalg.eigh(others.T @ lanczos.T[:size, :size] @ others)
        coordinates = others @ coordinates
        share = _new(state, coordinates)
        new = (share > 0.5).nonzero()[:, 0]
        best = new[self.wanted.among(values[new], self.keep - self.wanted.k)]
        kept = torch.cat([known, coordinates[:, best]], dim=1)
        lanczos.restart(kept, torch.cat([state.values[order], values[best]]))
        state.new = torch.cat([torch.zeros_like(state.values), share[best]])
        state.coordinates = torch.eye(kept.shape[1], dtype=torch.float64)[:, order.argsort()]

    def _begin_search(self, state: LanczosState) -> None:
        """From here on, take some steps from random directions."""
        lanczos = state.lanczos
        least = min(_SEARCH * lanczos.b, self.m - self.wanted.k)
        if lanczos.size + least > self.m:
            self._restart(state, self.m - least)
        lanczos.explore()
        state.new = torch.zeros(lanczos.size, dtype=torch.float64)
        state.search_from = state.products
        enough = max(_GIVEN if self.is_given else _SEARCH, state.products // lanczos.b - _QUICK)
        state.search_until = state.products + lanczos.b * enough

    def _has_seen_enough(self, state: LanczosState) -> bool:
        """Whether the search is over: by its limit, or because what is new is clearly no better."""
        lanczos, wanted = state.lanczos, self.wanted
        taken = state.products - state.search_from
        late = state.products - state.search_until
        if lanczos.size == lanczos.A.shape[1] or late >= _LATE * lanczos.b:
            return True
        if taken < min(_SEARCH * lanczos.b, self.m - wanted.k):
            return False
        values, coordinates, residuals = lanczos.ritz()
        is_new = _new(state, coordinates) > 0.5
        if not bool(is_new.any()):
            return False
        others, residuals = values[is_new], residuals[is_new]
        best = wanted.ends(others)
        distance = wanted.distance(others[best], state.values)
        enough = _SETTLED if late < 0 else 1.0
        return bool((residuals[best] <= enough * distance).all())

    def _finds_another(self, state: LanczosState) -> bool:
        """Whether another wanted value shows itself: then lock what there is and begin anew."""
        lanczos = state.lanczos
        values, coordinates, _ = lanczos.ritz()
        best = self.wanted.among(values)
        tolerance = self.wanted.tolerance(state.values, float(values.abs().max()))
        if bool(((values[best] - state.values).abs() <= tolerance).all()):
            return False
        k, known = len(best), len(state.coordinates)
        old = coordinates[:known, best].T @ state.coordinates  # (k, k): how much is not new
        new = best[old.norm(dim=1).argsort()[: lanczos.b]]
        start = lanczos.combine(coordinates[:, new])
        best_first = state.residuals.argsort()
        with uninterrupted():
            lanczos.lock(state.coordinates[:, best_first], state.values[best_first], start)
            state.coordinates = torch.eye(k, dtype=torch.float64)[:, best_first.argsort()]
            state.search_until = 0
        return True


def _new(state: LanczosState, coordinates: Tensor) -> Tensor:
    """How much of each Ritz vector was not known when the search began."""
    rest = len(coordinates) - len(state.new)
    return torch.cat([state.new, torch.ones(rest, dtype=torch.float64)]) @ coordinates**2
