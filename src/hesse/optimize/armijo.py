# SPDX-License-Identifier: Apache-2.0
"""Backtracking line search."""

from __future__ import annotations

import math

from torch import Tensor

from hesse.errors import Status
from hesse.optimize.point import Objective, Point
from hesse.optimize.proposal import LoopSearch, NoState, Proposal


class ArmijoSearch(LoopSearch):
    r"""Accept the first length in 1, a, a^2, ... with enough decrease.

    $$ f(x + t p) \le f(x) + c\, t\, g^T p $$

    Near a minimum the decrease is smaller than the rounding error of f: the inequality is relaxed
    by that error, and the loop watches the gradient. A step along negative curvature is doubled as
    long as f falls.

    Source: Nocedal & Wright 2006, algorithm 3.1, with its defaults of c and a.
    """

    def __init__(
        self, *, c: float = 1e-4, factor: float = 0.5, max_trials: int = 40, start: float = 1.0
    ) -> None:
        self.state = NoState()
        self.c, self.factor, self.max_trials, self.start = c, factor, max_trials, start

    @property
    def scalar(self) -> float:
        """No radius."""
        return math.inf

    def judge(self, objective: Objective, point: Point, proposal: Proposal) -> Point | None:
        """The first point along the step with enough decrease, or None."""
        step = proposal.best.step
        slope = point.space.inner(point.gradient, step)
        if not slope < 0.0:
            return None
        accepted = self.along(objective, point, step, slope)
        if accepted is not None and proposal.status is Status.NEGATIVE_CURVATURE:
            return _lengthened(objective, point, step, accepted)
        return accepted

    def along(
        self,
        objective: Objective,
        point: Point,
        step: Tensor,
        slope: float,
        full: Point | None = None,
    ) -> Point | None:
        """The first acceptable point on x + t step, t = start, factor * start, ...

        `full` is the point at t = 1, if it is known.
        """
        t = self.start
        for _ in range(self.max_trials):
            known = full if t == 1.0 else None
            trial = known or objective.point(point.x + t * step)
            bound = point.value + self.c * t * slope + point.rounding_error
            if trial.value <= bound and trial.is_usable:
                return trial
            t *= self.factor
        return None


def _lengthened(objective: Objective, point: Point, step: Tensor, accepted: Point) -> Point:
    """Double the step as long as the value falls; of these points the last with a gradient."""
    falling = [accepted]
    for doubling in range(1, 20):
        trial = objective.point(point.x + 2.0**doubling * step)
        if not trial.value < falling[-1].value:
            break
        falling.append(trial)
    return next(trial for trial in reversed(falling) if trial.is_usable)
