# SPDX-License-Identifier: Apache-2.0
"""The Lanczos method with thick restarts.

When the basis is full, the best Ritz vectors are kept and the iteration goes on from them: memory
is bounded whatever the accuracy. One starting vector sees one vector of each eigenspace only; so
when all wanted pairs have converged, some steps from a random direction orthogonal to all that was
seen look for an eigenvalue that was missed. If there is one, the pairs are locked, and the
iteration begins anew from what was found.
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
from hesse.progress import Run

# A missed eigenvalue is larger than one that was found: it shows in few steps, some of the number
# that convergence took.
_SEARCH = 4, 10
_SEARCH_SHARE = 5


@dataclass
class LanczosState:
    """What a callback sees after every step: the wanted Ritz values and their residuals so far."""

    lanczos: Lanczos
    values: Tensor = field(default_factory=lambda: torch.zeros(0))
    residuals: Tensor = field(default_factory=lambda: torch.zeros(0))
    coordinates: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    """Of the wanted Ritz vectors, as columns."""
    search_until: int = 0
    """The size of the basis up to which others are looked for; 0 while not looking."""
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
        return self._pairs(state, at_once)

    def _pairs(self, state: LanczosState, at_once: int) -> Eigenpairs:
        """The wanted Ritz pairs, verified."""
        lanczos, status = state.lanczos, state.status
        best_first = state.residuals.argsort()
        vectors = lanczos.combine(state.coordinates)
        orthonormalise(lanczos.A, vectors, rank=best_first)
        largest = float(lanczos.ritz()[0].abs().max())
        ritz = Ritz(state.values, vectors, state.residuals, largest)
        known = lanczos.basis.is_exact
        found = verified(lanczos.A, ritz, self.wanted, at_once, known=known)
        order = found.values.argsort()
        permute(vectors, order)
        if status is Status.CONVERGED and not bool(found.converged.all()):
            status = Status.STAGNATED
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
                if converged and lanczos.size == state.search_until:
                    return Status.CONVERGED
            else:
                converged = self._look(state)
                if converged and (not self.search or lanczos.size == lanczos.A.shape[1]):
                    return Status.CONVERGED
            if not run.after_step(state):
                break
            if converged and not state.search_until:
                self._begin_search(state)
            elif lanczos.size == self.m:
                self._restart(state, self.keep)
            checkpoint.save(state)
        return run.status

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

    def _begin_search(self, state: LanczosState) -> None:
        """From here on, take some steps from random directions."""
        lanczos, (least, most) = state.lanczos, _SEARCH
        steps = lanczos.b * min(max(least, state.products // _SEARCH_SHARE), most)
        steps = min(steps, self.m - self.wanted.k)
        if lanczos.size + steps > self.m:
            self._restart(state, self.m - steps)
        lanczos.explore()
        state.search_until = min(lanczos.size + steps, self.m)

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
        lanczos.lock(state.coordinates[:, best_first], state.values[best_first], start)
        state.coordinates = torch.eye(k, dtype=torch.float64)[:, best_first.argsort()]
        state.search_until = 0
        return True
