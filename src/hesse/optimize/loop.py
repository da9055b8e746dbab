# SPDX-License-Identifier: Apache-2.0
"""The loop of `minimize`: step until a point is certified as a minimum, or progress stops."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from hesse.checkpoint import Checkpoint
from hesse.errors import OperatorError, Status
from hesse.optimize.certificate import Certificate
from hesse.optimize.criterion import Criterion
from hesse.optimize.noise import measured_noise
from hesse.optimize.point import Counts, Objective, Point
from hesse.optimize.proposal import LoopDescent, LoopSearch, NoState, Proposal, take_step
from hesse.progress import Run
from hesse.ranks import is_outside_domain

# Steps without progress before stopping, if the trust radius is small by then.
_MAX_FAILURES = 12
# The same for proposals that a line search rejects: Newton's step, and one along the gradient.
_MAX_REJECTIONS = 2
# After so many, and at the end, the gradient is compared with rounding errors.
_FEW_FAILURES = 3
# What an iteration may take at least: a product of CG, and one along negative curvature.
_LEAST_PRODUCTS = 2


@dataclass
class Iteration:
    """The state after a step, as a callback sees it; `point` is the best so far."""

    number: int
    point: Point
    products: int = 0
    """Products with the curvature so far."""
    status: Status = Status.UNFINISHED

    @property
    def value(self) -> float:
        """f at the point."""
        return self.point.value

    @property
    def gradient_norm(self) -> float:
        """|grad f| at the point."""
        return self.point.gradient_norm


@dataclass
class MinimizeState:
    """Everything that the next iteration depends on, as a checkpoint saves it."""

    x: Tensor
    best_x: Tensor
    counts: Counts
    has_curvature: bool = False
    """Whether the curvature at x has been made, and counted; then the same at best_x."""
    best_has_curvature: bool = False
    start_value: float = 0.0
    start_gradient_norm: float = 0.0
    start_norm: float = 0.0
    """Of x."""
    number: int = 0
    failures: int = 0
    """Iterations since the best point."""
    rejections: int = 0
    """Proposals since the last step."""
    search: Any = field(default_factory=NoState)
    """Its state."""
    descent: Any = field(default_factory=NoState)
    """Its state."""
    history: list[tuple[float, float]] = field(default_factory=list)
    is_judged: bool = False
    """Whether the best point has had its certificate."""
    rounding_at: int = -1
    """The iteration at which its gradient was compared with rounding errors."""
    min_curvature: float = math.nan
    lower_x: Tensor | None = None
    """Where the certificate found a lower value."""
    status: Status = Status.UNFINISHED


# With these there is nothing to continue.
_FINAL = {
    Status.CONVERGED,
    Status.SADDLE_POINT,
    Status.UNBOUNDED,
    Status.STAGNATED,
    Status.NOT_FINITE,
}


class Minimisation:
    """An iteration of proposals, searches and tests, from one point to the next.

    Args:
        objective: the function.
        state: where to start, or where to continue.
        point, best: the points of that state.
        descent, search: the method.
        certificate: tells a minimum from another point with a small gradient.
        limits: of products and seconds.
        max_iterations: the limit of iterations.
        checkpoint: where the state is saved.
    """

    def __init__(
        self,
        objective: Objective,
        state: MinimizeState,
        point: Point,
        best: Point,
        *,
        descent: LoopDescent,
        search: LoopSearch,
        certificate: Certificate,
        limits: Run,
        max_iterations: int,
        checkpoint: Checkpoint,
    ) -> None:
        self.objective, self.state = objective, state
        self.point, self.best = point, best
        self.descent, self.search, self.certificate = descent, search, certificate
        self.limits, self.max_iterations = limits, max_iterations
        self._checkpoint, self._snapshot = checkpoint, state
        descent.gradient_tolerance = certificate.criterion.tolerance
        self._lower = None if state.lower_x is None else objective.point(state.lower_x)
        self._is_undefined = False

    @property
    def criterion(self) -> Criterion:
        """The first-order test."""
        return self.certificate.criterion

    def iteration(self, status: Status = Status.UNFINISHED) -> Iteration:
        """What a callback sees now."""
        state = self.state
        return Iteration(state.number, self.best, state.counts.nhev, status)

    def iterations(self) -> Iterator[Iteration]:
        """The iterations, first that of the start; the last has the final status."""
        while True:
            if len(self.state.history) == self.state.number:
                self.state.history.append((self.best.value, self.best.gradient_norm))
            if self.state.status not in _FINAL:
                self.state.status = self._status()
            self._snapshot = self._saved()
            self.save()
            yield self.iteration(self.state.status)
            if self.state.status is not Status.UNFINISHED:
                return
            self._advance()

    def save(self, *, now: bool = False) -> None:
        """Write the state after the last full iteration, from which the next one follows."""
        self._checkpoint.save(self._snapshot, now=now)

    def _saved(self) -> MinimizeState:
        """A copy of the state, with that of the search and of the descent."""
        lower = self._lower
        return replace(
            self.state,
            x=self.point.x,
            best_x=self.best.x,
            counts=replace(self.state.counts),
            has_curvature=self.point.has_curvature,
            best_has_curvature=self.best.has_curvature,
            search=replace(self.search.state),
            descent=replace(self.descent.state),
            history=list(self.state.history),
            lower_x=None if lower is None else lower.x,
        )

    # -- One iteration -----------------------------------------------------------------------------

    def _advance(self) -> None:
        """A step, or the move to a lower point that the certificate found."""
        state, before, lower, self._lower = self.state, self.point, self._lower, None
        if lower is not None:
            self._move_to(lower)
        else:
            self.descent.along_gradient = self._has_no_scalar and state.rejections == 1
            try:
                self.point, proposal = take_step(
                    self.objective, self.point, self.descent, self.search
                )
            except Exception as error:
                if isinstance(error, OperatorError) or not is_outside_domain(error):
                    raise
                state.counts.note(error)
                self._is_undefined = True
                return
            if self.point is before or state.failures == _FEW_FAILURES:
                self._measure_noise(proposal)
        state.number += 1
        state.rejections = state.rejections + 1 if self.point is before else 0
        if _is_better(self.point, self.best):
            self.best, state.failures, state.is_judged = self.point, 0, False
            state.min_curvature = math.nan
        else:
            state.failures += 1

    def _measure_noise(self, proposal: Proposal) -> None:
        """Measure the rounding error of f, once, where it may be why f does not fall."""
        promised, state = -proposal.best.predicted, self.state
        fallen = max(abs(self.point.value), state.start_value - self.point.value)
        may_be_noise = 0.0 < promised <= torch.finfo(self.point.x.dtype).eps ** 0.5 * fallen
        if may_be_noise and state.rejections == 0:
            state.counts.noise = measured_noise(self.objective, self.point)

    def _move_to(self, lower: Point) -> None:
        """Go on from a point that is no neighbour: its gradient is that of a new start."""
        state, space = self.state, self.objective.space
        self.descent.moved()
        self.search.moved(lower, space.norm(lower.x - self.best.x), self.descent)
        self.point = lower
        if lower.gradient_norm > state.start_gradient_norm:
            state.start_gradient_norm = lower.gradient_norm
            criterion = replace(self.criterion, start_gradient_norm=lower.gradient_norm)
            self.certificate.criterion = criterion
            self.descent.gradient_tolerance = criterion.tolerance

    @property
    def _has_no_scalar(self) -> bool:
        """Whether the search keeps no radius, so that a rejected proposal would come again."""
        return math.isinf(self.search.scalar)

    # -- Why it ends -------------------------------------------------------------------------------

    def _status(self) -> Status:
        status = self._judged() if self._is_stationary() else Status.UNFINISHED
        if status is not Status.UNFINISHED:
            return status
        if self._is_undefined:
            return self._or_unbounded(Status.NOT_FINITE)
        if self._is_unbounded():
            return Status.UNBOUNDED
        if self._is_exhausted and self._lower is None:
            return self._or_unbounded(Status.STAGNATED)
        if self.state.number >= self.max_iterations:
            return self._or_unbounded(Status.MAX_ITERATIONS)
        least = max(_LEAST_PRODUCTS, self.point.entries_to_come)
        if not self.limits.allows(self.iteration(), least):
            return self.limits.status
        return Status.UNFINISHED

    def _judged(self) -> Status:
        """The verdict of the certificate on the best point."""
        verdict = self.certificate.judge(self.best)
        self.state.is_judged = True
        self.state.min_curvature, self._lower = verdict.min_curvature, verdict.lower
        return verdict.status

    def _is_stationary(self) -> bool:
        """Whether the gradient at the best point is small, and that was not said of it before."""
        best, state, criterion = self.best, self.state, self.criterion
        if state.is_judged:
            return False
        if best.gradient_norm <= criterion.tolerance:
            return True
        if not criterion.accepts_rounding or state.rounding_at == state.number:
            return False
        state.rounding_at = state.number
        if self._is_exhausted:
            return self.certificate.is_zero_to_rounding(best)
        if best.gradient_norm > criterion.level and state.failures != _FEW_FAILURES:
            return False
        return self._is_slow and self.certificate.is_zero_to_rounding(best, by_value=False)

    @property
    def _is_exhausted(self) -> bool:
        """Whether another iteration would bring nothing."""
        state, x = self.state, self.best.x
        if self._has_no_scalar and state.rejections >= _MAX_REJECTIONS:
            return True
        if state.failures < _MAX_FAILURES:
            return False
        shortest = torch.finfo(x.dtype).eps ** 0.5 * max(1.0, self.objective.space.norm(x))
        return self.search.is_short(shortest) or state.rejections < state.failures

    @property
    def _is_slow(self) -> bool:
        """Whether the last iteration did not halve the gradient, or there was none."""
        history = self.state.history
        return len(history) < 2 or history[-1][1] > 0.5 * history[-2][1]

    def _is_unbounded(self) -> bool:
        """Whether f or x has left the range of what a minimum could have."""
        best, state, eps = self.best, self.state, torch.finfo(self.best.x.dtype).eps
        if best.value < -max(1.0, abs(state.start_value)) / eps**2:
            return True
        far = max(1.0, state.start_norm) / eps**1.5
        return best.value < state.start_value and self.objective.space.norm(best.x) > far

    def _or_unbounded(self, status: Status) -> Status:
        """UNBOUNDED instead, if f was minus infinity at a trial point."""
        return Status.UNBOUNDED if self.state.counts.is_unbounded else status


def _is_better(point: Point, best: Point) -> bool:
    """Whether f is lower by more than rounding, or equal up to it with a smaller gradient."""
    if point is best:
        return False
    noise = best.rounding_error
    if point.value < best.value - noise:
        return True
    return point.value <= best.value + noise and point.gradient_norm < best.gradient_norm
