# SPDX-License-Identifier: Apache-2.0
"""The Lanczos method with thick restarts.

When the basis is full, the best Ritz vectors are kept and the iteration continues from them: memory
is bounded whatever the accuracy. From one starting vector only one vector of each eigenspace can be
found, from a given one perhaps none of some. So when all wanted pairs have converged, steps from a
random direction orthogonal to the basis search for a missed eigenvalue (decision 11). If there is
one, the iteration continues from all rows, the new ones and those that waited before the search:
the block has grown by the copies that were found (decision 20).
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


# Ritz values are computed at every step of a small basis, and later whenever it has grown by 1/24.
_SMALL, _GROWTH = 64, 24


@dataclass
class LanczosState:
    """What a callback sees after every step: the wanted Ritz values and their residuals so far."""

    lanczos: LanczosProcess
    values: Tensor = field(default_factory=lambda: torch.zeros(0))
    residuals: Tensor = field(default_factory=lambda: torch.zeros(0))
    coordinates: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    """Of the wanted Ritz vectors, as columns."""
    largest: float = 0.0
    """The largest Ritz value in magnitude so far."""
    due: int = 0
    """The size of the basis at which Ritz values are computed again."""
    phase_from: int = 0
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

    @property
    def is_current(self) -> bool:
        """Whether the Ritz values are those of the basis as it is."""
        return len(self.coordinates) == self.lanczos.size


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
        if not state.search_until and not state.is_current:
            self._update_ritz(state)
        return self._pairs(state, at_once, run.left(lanczos.products))

    def _pairs(self, state: LanczosState, at_once: int, most: float) -> Eigenpairs:
        """The wanted Ritz pairs, verified by so many products at most."""
        lanczos, status = state.lanczos, state.status
        best_first = state.residuals.argsort()
        vectors = lanczos.combine(state.coordinates)
        orthonormalise(lanczos.A, vectors, rank=best_first)
        rounding = (16 + lanczos.restarts) * self.selection.eps * state.largest
        ritz = Ritz(state.values, vectors, state.residuals, state.largest, rounding)
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
        lanczos = state.lanczos
        while lanczos.size == 0 or run.goes_on(state):
            converged = False
            self._step(state)
            if self._is_due(state):
                converged = self._look(state)
                if converged and self._is_over(state):
                    return Status.CONVERGED
                if lanczos.is_whole:  # no row can be added
                    return Status.STAGNATED
            if not run.after_step(state):
                break
            with uninterrupted():
                self._make_room(state, converged, run)
            checkpoint.save(state)
        return run.status

    def _step(self, state: LanczosState) -> None:
        """Take the products of the rows that promise most."""
        lanczos = state.lanczos
        count = min(lanczos.b, lanczos.waiting)
        if lanczos.rows < lanczos.A.domain.n:
            count = min(count, lanczos.free)
        if count < lanczos.waiting and lanczos.explored:
            lanczos.bring_forward(self._choose(state, count))
        lanczos.step(count)

    def _choose(self, state: LanczosState, count: int) -> list[int]:
        """Which of the waiting rows: the last ones, or those that pairs depend on most.

        A search is for what the rows before it do not see.
        """
        waiting, size = state.lanczos.waiting, state.lanczos.size
        unconverged = state.residuals > self._tolerance(state)
        if state.search_until or not state.is_current or not bool(unconverged.any()):
            return list(range(waiting - count, waiting))
        outside = state.lanczos.T[size : size + waiting, :size]
        coupling = (outside @ state.coordinates[:, unconverged]).norm(dim=1)
        return coupling.argsort()[waiting - count :].sort().values.tolist()

    def _is_due(self, state: LanczosState) -> bool:
        """Whether to compute Ritz values: at every step of a basis that is small or full."""
        lanczos = state.lanczos
        is_full = lanczos.free == 0 or lanczos.is_whole
        if _SMALL <= lanczos.size < state.due and not is_full:
            return False
        state.due = lanczos.size + lanczos.size // _GROWTH
        return True

    def _look(self, state: LanczosState) -> bool:
        """Whether the wanted pairs have converged, or a search has found no other so far."""
        if state.search_until and not state.lanczos.is_whole:
            return not self._finds_another(state)
        state.search_until = 0
        return self._update_ritz(state)

    def _is_over(self, state: LanczosState) -> bool:
        """Whether converged pairs are the wanted ones, as far as a search is wanted and can tell."""
        if state.search_until:
            return self._search_is_over(state)
        return not self.search or state.lanczos.is_whole

    def _make_room(self, state: LanczosState, converged: bool, run: Run) -> None:
        """Begin to search if converged, or restart if the basis is full."""
        if converged and not state.search_until:
            self._begin_search(state)
        elif state.lanczos.free == 0 and not state.lanczos.is_whole:
            if state.search_until:
                self._restart_search(state)
            else:
                self._restart(state, self.keep)
        if state.lanczos.drops:  # the residuals are bounds now: each pair may need a product
            run.reserved = state.lanczos.b + self.selection.k

    def _update_ritz(self, state: LanczosState) -> bool:
        """Compute the wanted Ritz pairs; whether all have converged."""
        values, coordinates, residuals = state.lanczos.ritz()
        best = self.selection.among(values)
        state.values, state.residuals = values[best], residuals[best]
        state.coordinates = coordinates[:, best]
        state.largest = max(state.largest, float(values.abs().max()))
        tolerance = self._tolerance(state)
        return len(best) == self.selection.k and bool((state.residuals <= tolerance).all())

    def _tolerance(self, state: LanczosState) -> Tensor:
        return self.selection.tolerance(state.values, state.largest)

    def _restart(self, state: LanczosState, keep: int) -> None:
        """Make room: keep the best Ritz vectors, the wanted ones among them."""
        lanczos = state.lanczos
        values, coordinates, residuals = lanczos.ritz()
        keep = min(keep, len(lanczos.basis.rows) - lanczos.waiting - 1)
        best, kept = self.selection.among(values), self.selection.among(values, keep)
        kept = kept[residuals[kept].argsort()]
        lanczos.restart(coordinates[:, kept], values[kept])
        state.due = 0
        state.coordinates = (kept[:, None] == best).double()

    def _restart_search(self, state: LanczosState) -> None:
        """Make room: keep the wanted vectors as they are, and the best new ones."""
        lanczos, order = state.lanczos, state.residuals.argsort()
        size, k = lanczos.size, len(order)
        known = self._padded(state)[:, order]
        # Ritz vectors orthogonal to those: for equal values the old and the new would be mixed.
        others = torch.linalg.qr(known, mode="complete").Q[:, k:]
        values, coordinates = torch.linalg.eigh(others.T @ lanczos.T[:size, :size] @ others)
        coordinates = others @ coordinates
        share = _new(state, coordinates)
        new = (share > 0.5).nonzero()[:, 0]
        keep = min(self.keep, len(lanczos.basis.rows) - lanczos.waiting - 1) - k
        best = new[self.selection.among(values[new], keep)]
        lanczos.compress(torch.cat([known, coordinates[:, best]], dim=1))
        state.due = 0
        state.new = torch.cat([torch.zeros_like(state.values), share[best]])
        state.coordinates = torch.eye(lanczos.size, dtype=torch.float64)[:, order.argsort()]

    def _padded(self, state: LanczosState) -> Tensor:
        """The coordinates of the wanted vectors with zeros for the rows of the search."""
        known = torch.zeros(state.lanczos.size, len(state.values), dtype=torch.float64)
        known[: len(state.coordinates)] = state.coordinates
        return known

    def _begin_search(self, state: LanczosState) -> None:
        """Continue from random directions, for some steps."""
        lanczos = state.lanczos
        least = self._shortest_search(lanczos)
        if not self._has_room(lanczos):
            lanczos.drop()
        room = self.m - least - lanczos.waiting
        if lanczos.size > room and self.m < lanczos.A.domain.n:
            self._restart(state, room)
        lanczos.explore()
        state.new = torch.zeros(lanczos.size, dtype=torch.float64)
        state.due = lanczos.size + least
        steps = (state.products - state.phase_from) // lanczos.b
        state.search_from = state.phase_from = state.products
        enough = max(_GIVEN if self.is_given else _SEARCH, steps - _QUICK)
        state.search_until = state.products + lanczos.b * enough

    def _shortest_search(self, lanczos: LanczosProcess) -> int:
        return min(_SEARCH * lanczos.b, self.m - self.selection.k)

    def _has_room(self, lanczos: LanczosProcess) -> bool:
        """Whether a search leaves room for the rows that wait, and for steps after it."""
        if self.m >= lanczos.A.domain.n:
            return True
        k, b, waiting = self.selection.k, lanczos.b, lanczos.waiting
        fits = k + waiting + self._shortest_search(lanczos) <= self.m
        return fits and waiting + b <= max(2 * b, (self.m - k) // 3)

    def _search_is_over(self, state: LanczosState) -> bool:
        """Whether the search is over: at its limit, or because no new value is wanted."""
        lanczos, selection = state.lanczos, self.selection
        taken = state.products - state.search_from
        late = state.products - state.search_until
        if late >= _LATE * lanczos.b:
            return True
        if taken < self._shortest_search(lanczos):
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
        """Whether another wanted value was found; then the iteration continues with it."""
        lanczos = state.lanczos
        values, coordinates, _ = lanczos.ritz()
        best = self.selection.among(values)
        least = self._tolerance(state).clamp(min=lanczos.value_noise)
        if bool(((values[best] - state.values).abs() <= least).all()):
            return False
        with uninterrupted():
            if not self._has_room(lanczos):
                self._lock(state, coordinates[:, best])
            state.search_until = 0
        if state.is_current:
            return True
        return not self._update_ritz(state)

    def _lock(self, state: LanczosState, best: Tensor) -> None:
        """Keep the converged vectors alone, and continue from the new ones among the best."""
        lanczos, known = state.lanczos, self._padded(state)
        old = best.T @ known  # (k, k): the part that is not new
        new = best[:, old.norm(dim=1).argsort()[: lanczos.b]]
        start, best_first = lanczos.combine(new), state.residuals.argsort()
        lanczos.lock(known[:, best_first], start)
        state.due = 0
        state.coordinates = torch.eye(len(old), dtype=torch.float64)[:, best_first.argsort()]


def _new(state: LanczosState, coordinates: Tensor) -> Tensor:
    """The fraction of each Ritz vector that is new since the search began."""
    rest = len(coordinates) - len(state.new)
    return torch.cat([state.new, torch.ones(rest, dtype=torch.float64)]) @ coordinates**2
