# SPDX-License-Identifier: Apache-2.0
"""Quasi-Newton steps within bounds: L-BFGS-B.

First a point along the projection of the negative gradient at which the model is nearly lowest.
Then its minimum on the variables that are inside their bounds there, projected to the bounds.

References: Byrd, Lu, Nocedal & Zhu 1995, doi:10.1137/0916069; Morales & Nocedal 2011,
doi:10.1145/2049662.2049669 (the projection).
"""

from __future__ import annotations

import math

from torch import Tensor

from hesse.optimize.box import Box
from hesse.optimize.compact_bfgs import CompactBFGS
from hesse.optimize.point import Point
from hesse.optimize.proposal import Candidate, Proposal
from hesse.optimize.quasi_newton import QuasiNewton
from hesse.optimize.truncated_newton import along_gradient

# What may be left of the slope of the model along the projected gradient, and the trials for that.
_SLOPE, _TRIALS = 0.1, 20


class ProjectedQuasiNewton(QuasiNewton):
    """The step of L-BFGS-B.

    Args:
        box: the bounds.
        memory: pairs that are kept.
    """

    def __init__(self, box: Box, memory: int) -> None:
        super().__init__(memory)
        self._box = box

    def propose(self, point: Point, scalar: float) -> Proposal:
        """A step from `point`, to another one within the bounds."""
        self.learn(point)
        if self.along_gradient:
            return Proposal(along_gradient(point))
        step = self._quasi_newton(point) if self.state.S else self._first(point)
        slope = point.space.inner(point.gradient, step)
        if not slope < 0.0:
            return Proposal(along_gradient(point))
        return Proposal(Candidate(step, 0.5 * slope))

    def _first(self, point: Point) -> Tensor:
        """A step towards the projection of x - g, no longer than 1; the next has curvature."""
        step = self._to(point, -point.gradient)
        length = point.space.norm(step)
        return min(1.0, 1.0 / length) * step if length else step

    def _quasi_newton(self, point: Point) -> Tensor:
        """The step to the minimum of the model on the face of the Cauchy point."""
        space, g = point.space, point.gradient
        B = CompactBFGS(space, self.state.S, self.state.Y)
        cauchy = self._cauchy(point, B)
        inside = self._box.inside(point.x + cauchy)
        p = B.solve(inside, -(inside * (g + B.product(cauchy))))
        step = self._to(point, cauchy + p)
        if space.inner(g, step) < 0.0:
            return step
        return cauchy + min(1.0, self._box.first_bound(point.x + cauchy, p, space)) * p

    def _cauchy(self, point: Point, B: CompactBFGS) -> Tensor:
        """The step to the projection of x - t g / |g|, for a t at which the model's slope is small.

        By Newton's method for the slope within a bracket; where it jumps at a bound, to that.
        """
        space, g = point.space, point.gradient
        low, high, t = 0.0, math.inf, 0.0
        unit = g / point.gradient_norm
        step, d = point.space.zeros(), -point.projected_gradient / point.gradient_norm
        slope = first = -point.gradient_norm
        for _ in range(_TRIALS):
            curvature = space.inner(d, B.product(d))
            t -= slope / curvature
            if not low < t < high:
                t = 2.0 * low if high == math.inf else 0.5 * (low + high)
            step = self._to(point, -t * unit)
            d = self._box.along(point.x + step, -unit)
            slope = space.inner(g, d) + space.inner(d, B.product(step))
            if abs(slope) <= _SLOPE * abs(first):
                break
            low, high = (t, high) if slope < 0.0 else (low, t)
        return step

    def _to(self, point: Point, step: Tensor) -> Tensor:
        """The step to the projection of x + step."""
        return self._box.project(point.x + step) - point.x
