# SPDX-License-Identifier: Apache-2.0
"""The Lanczos method with thick restarts.

When the basis is full, the best Ritz vectors are kept and the iteration goes on from them: memory
is bounded whatever the accuracy. One starting vector sees one vector of each eigenspace only; so
when all wanted pairs have converged they are locked, and some steps from a random direction
orthogonal to them look for an eigenvalue that was missed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hesse.checkpoint import Checkpoint
from hesse.errors import Status
from hesse.krylov.eigenpairs import Eigenpairs, Wanted, verified
from hesse.krylov.lanczos import Lanczos
from hesse.progress import Run

# A missed eigenvalue is larger than one that was found: it shows in few steps, some of the number
# that convergence took.
_SEARCH = 6, 10
_SEARCH_SHARE = 4


@dataclass
class LanczosState:
    """What a callback sees after every step: the wanted Ritz values and their residuals so far."""

    lanczos: Lanczos
    values: Tensor = field(default_factory=lambda: torch.zeros(0))
    residuals: Tensor = field(default_factory=lambda: torch.zeros(0))
    locked: Tensor | None = None
    """The values that were locked to look for others, while looking."""
    search: int = 0
    """How many steps that takes."""
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
        """The wanted Ritz pairs, verified: those that were locked, if nothing else was found."""
        lanczos, status = state.lanczos, state.status
        values, coordinates, residuals = lanczos.ritz()
        best, largest = self.wanted.among(values), float(values.abs().max())
        if status is Status.CONVERGED and state.locked is not None:
            best = torch.arange(len(state.locked))
            values, residuals = state.locked, lanczos.dropped
        else:
            lanczos.basis.rotate(coordinates[:, best], slice(0, 0))
        found = verified(
            lanczos.basis, values[best], residuals[best], self.wanted, largest, at_once
        )
        order = found.values.argsort()
        vectors = lanczos.basis.combine(torch.eye(len(best), dtype=torch.float64)[:, order])
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
        lanczos = state.lanczos
        while lanczos.size == 0 or run.goes_on(state):
            lanczos.step(min(lanczos.b, self.m - lanczos.size))
            values, coordinates, residuals = lanczos.ritz()
            best = self.wanted.among(values)
            state.values, state.residuals = values[best], residuals[best]
            converged = self._all_converged(state, values)
            if converged and self._is_done(state, values):
                return Status.CONVERGED
            if not run.after_step(state):
                break
            if converged and state.locked is None and self.search:
                lanczos.lock(coordinates[:, best], values[best])
                state.locked = values[best]
                least, most = _SEARCH
                state.search = lanczos.b * min(max(least, state.products // _SEARCH_SHARE), most)
            elif lanczos.size == self.m:
                kept = self.wanted.among(values, self.keep)
                lanczos.restart(coordinates[:, kept], values[kept])
            checkpoint.save(state)
        return run.status

    def _is_done(self, state: LanczosState, values: Tensor) -> bool:
        """Whether nothing better is to be found, of pairs that have all converged."""
        lanczos = state.lanczos
        if not self.search or lanczos.size == lanczos.A.shape[1]:
            return True
        if state.locked is None:
            return False
        tolerance = self.wanted.tolerance(state.values, float(values.abs().max()))
        if bool(((state.values - state.locked).abs() > tolerance).any()):
            state.locked = None  # something had been missed: converge, lock and look again
            return False
        return lanczos.size >= min(self.m, self.wanted.k + state.search)

    def _all_converged(self, state: LanczosState, values: Tensor) -> bool:
        tolerance = self.wanted.tolerance(state.values, float(values.abs().max()))
        enough = len(state.values) == self.wanted.k
        return enough and bool((state.residuals <= tolerance).all())
