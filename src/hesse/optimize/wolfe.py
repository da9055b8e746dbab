# SPDX-License-Identifier: Apache-2.0
"""The line search of quasi-Newton methods: enough decrease, and a slope that is nearly gone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from hesse.optimize.point import Objective, Point
from hesse.optimize.proposal import LoopSearch, NoState, Proposal

# A length that is too short is multiplied by this, by its square after so many times, then by the
# square of that, up to a power: a first step may be short by any factor, as -g is of a small f.
_GROWTH, _TIMES, _LARGEST_POWER = 4.0, 4, 16
# An interpolated length keeps this part of the interval away from its ends.
_MARGIN = 0.1
# An interval that is shorter, relative to its end, holds nothing new.
_SHORTEST = 1e-10


@dataclass
class _End:
    """An end of the interval: length, value and slope there; the point, unless it is the start."""

    t: float
    value: float
    slope: float = math.nan
    point: Point | None = None


class StrongWolfeSearch(LoopSearch):
    r"""A length t with enough decrease and a small slope, by bracketing and interpolation.

    $$ f(x + t p) \le f(x) + c_1 t\, g^T p, \qquad
       \lvert \nabla f(x + t p)^T p \rvert \le c_2 \lvert g^T p \rvert $$

    The first inequality is relaxed by the rounding error of f. If no length satisfies both, the one
    of the lowest value that satisfies the first is taken. Within bounds the search goes along the
    projection of x + t p, and t g'p becomes what f falls by to first order.

    Source: Nocedal & Wright 2006, algorithms 3.5 and 3.6, with their c1 and c2.
    """

    def __init__(self, *, c1: float = 1e-4, c2: float = 0.9, max_trials: int = 40) -> None:
        self.state = NoState()
        self.c1, self.c2, self.max_trials = c1, c2, max_trials

    @property
    def scalar(self) -> float:
        """No radius."""
        return math.inf

    def judge(self, objective: Objective, point: Point, proposal: Proposal) -> Point | None:
        """The accepted point, or None."""
        p = proposal.best.step
        slope = _slope(point, p)
        if not slope < 0.0:
            return None
        low, high, t, grown = _End(0.0, point.value, slope), None, 1.0, 0
        for _ in range(self.max_trials):
            trial = objective.point(point.x + t * p)
            fall = t * slope if point.box is None else _fall(point, trial)
            enough = point.value + self.c1 * fall + point.rounding_error
            margin = point.rounding_error if high is None else 0.0
            rises = low.point is not None and trial.value >= low.value + margin
            if trial.value > enough or rises or not trial.is_usable:
                high = _End(t, trial.value)
            else:
                end = self._end(trial, p, t)
                if abs(end.slope) <= self.c2 * abs(slope):
                    return trial
                if end.slope * (1.0 if high is None else high.t - low.t) >= 0.0:
                    high = low
                low = end
            if high is not None and abs(high.t - low.t) <= _SHORTEST * high.t:
                break
            if high is None:
                t *= _GROWTH ** min(2 ** (grown // _TIMES), _LARGEST_POWER)
                grown += 1
            else:
                t = _between(low, high)
        return low.point

    @staticmethod
    def _end(trial: Point, p: Tensor, t: float) -> _End:
        return _End(t, trial.value, _slope(trial, p), trial)


def _slope(point: Point, p: Tensor) -> float:
    """The derivative of f along p, or along its projection to the bounds."""
    if point.box is not None:
        p = point.box.along(point.x, p)
    return point.space.inner(point.gradient, p)


def _fall(point: Point, trial: Point) -> float:
    """What f falls by to first order on the way to a trial point, which may be a projection."""
    return point.space.inner(point.gradient, trial.x - point.x)


def _between(low: _End, high: _End) -> float:
    """The minimum of the parabola through both values and the slope at `low`, off the ends."""
    width = high.t - low.t
    bend = (high.value - low.value - low.slope * width) / width / width
    fraction = 0.5
    if 0.0 < bend < math.inf:
        fraction = -low.slope / (2.0 * bend) / width
    return low.t + min(max(fraction, _MARGIN), 1.0 - _MARGIN) * width
