# SPDX-License-Identifier: Apache-2.0
"""The Lanczos method with thick restarts.

When the basis is full, the best Ritz vectors are kept and the iteration continues from them: memory
is bounded whatever the accuracy. When the wanted pairs have converged, a search looks for others
that the start could not see (`missed_values`).
"""

from __future__ import annotations

from dataclasses import dataclass

from hesse.checkpoint import Checkpoint
from hesse.errors import Status
from hesse.krylov.basis import orthonormalise, permute
from hesse.krylov.eigenpairs import Eigenpairs, Ritz, Selection, verify
from hesse.krylov.lanczos_process import LanczosProcess
from hesse.krylov.lanczos_state import LanczosState
from hesse.krylov.missed_values import MissedValues
from hesse.progress import Run, uninterrupted


@dataclass
class ThickRestart:
    """Eigenpairs from a basis that is restarted with `keep` vectors when it is full."""

    selection: Selection
    keep: int
    is_whole: bool
    """Whether the basis may become that of the whole space."""
    missed: MissedValues | None
    """The search for others; None for none."""

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
        if state.converged < self.selection.k:
            state.update(self.selection)
        return self._pairs(state, at_once, run.left(lanczos.products))

    def _pairs(self, state: LanczosState, at_once: int, most: float) -> Eigenpairs:
        """The wanted Ritz pairs, verified by so many products at most."""
        lanczos, status = state.lanczos, state.status
        lost = lanczos.lost_orthogonality(state.coordinates)
        best_first = (state.residuals + lost).argsort()
        vectors = lanczos.combine(state.coordinates)
        removed = orthonormalise(lanczos.A, vectors, rank=best_first)
        lost += (removed * (state.values[:, None] - state.values)).norm(dim=1)
        rounding = lanczos.roundings * self.selection.eps * state.largest
        ritz = Ritz(state.values, vectors, state.residuals, state.largest, rounding, lost)
        known = lanczos.basis.is_exact and not lanczos.hidden.count
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
            self._unseen(lanczos),
        )

    def _unseen(self, lanczos: LanczosProcess) -> float | None:
        """The probability that an eigenvalue which is wanted was not seen, if that is known."""
        if lanczos.is_whole:
            return 0.0
        return None if self.missed is None else lanczos.unseen.probability

    def _iterate(self, state: LanczosState, run: Run, checkpoint: Checkpoint) -> Status:
        lanczos = state.lanczos
        while lanczos.size == 0 or run.goes_on(state):
            self._step(state)
            converged = state.is_due() and self._look(state)
            if converged and (self.missed is None or lanczos.is_whole or state.search_until):
                return Status.CONVERGED
            if lanczos.is_whole:  # no row can be added
                return Status.STAGNATED
            if not run.after_step(state):
                break
            if converged and not state.search_until and not self.is_whole:
                # It may drop rows, which hides part of the residuals: each pair needs a product.
                run.reserved = lanczos.b + self.selection.k
                if not run.goes_on(state):
                    break
            with uninterrupted():
                self._make_room(state, converged)
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
        """Which waiting rows: those that the next pair depends on most, or the last ones."""
        waiting, size = state.lanczos.waiting, state.lanczos.size
        if len(state.aim) != size or state.aim.shape[1] == 0:
            return list(range(waiting - count, waiting))
        coupling = (state.lanczos.T[size : size + waiting, :size] @ state.aim).norm(dim=1)
        return coupling.argsort()[waiting - count :].sort().values.tolist()

    def _look(self, state: LanczosState) -> bool:
        """Whether the wanted pairs have converged, and a search, if there is one, is over."""
        if self.missed is None or not state.search_until or state.lanczos.is_whole:
            return state.update(self.selection)
        ritz = state.lanczos.ritz()
        if self.missed.finds_another(state, ritz):
            if not state.is_current:  # it is, after locking the pairs
                state.update(self.selection)
            return False
        return self.missed.is_over(state, ritz)

    def _make_room(self, state: LanczosState, converged: bool) -> None:
        """Begin a search if it is time for one, or restart if the basis is full."""
        if self.missed is not None and converged:
            self.missed.begin(state)
        elif state.must_restart and self.missed is not None and state.search_until:
            self.missed.restart(state)
        elif state.must_restart:
            state.restart(self.selection, self.keep)
