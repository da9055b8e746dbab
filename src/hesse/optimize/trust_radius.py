# SPDX-License-Identifier: Apache-2.0
"""The trust radius: the length of steps up to which the quadratic model is trusted."""

from __future__ import annotations

import math

from hesse.optimize.point import Objective, Point
from hesse.optimize.proposal import Candidate, Proposal
from hesse.optimize.truncated_newton import LONGEST


def gain_ratio(point: Point, trial: Point, candidate: Candidate) -> float:
    """rho, the decrease of f over that of the model; minus infinity where f is not finite.

    The rounding error of f is added to both, so that the ratio tends to 1 where they are smaller
    than it (Conn, Gould & Toint 2000, section 17.4.2).
    """
    if not math.isfinite(trial.value):
        return -math.inf
    noise = point.rounding_error
    return (point.value - trial.value + noise) / (noise - candidate.predicted)


class TrustRadius:
    """A radius that grows where the model predicts f well and shrinks where it does not.

    It becomes a quarter of the step's length if rho < 1/4, and doubles if rho > 3/4 for a step to
    the boundary. A step is accepted if rho > 1e-4. The first radius, unless given, is the length of
    the step to the minimum of the model along the gradient.

    Source: Nocedal & Wright 2006, algorithm 4.1.
    """

    def __init__(
        self, point: Point, *, radius: float | None = None, largest: float = 1e100
    ) -> None:
        self.scalar = _first_radius(point) if radius is None else radius
        self.largest = largest

    def judge(self, objective: Objective, point: Point, proposal: Proposal) -> Point | None:
        """The point at the end of the step if f falls enough there; updates the radius."""
        candidate = proposal.best
        if not candidate.predicted < 0.0:
            self.scalar *= 0.25
            return None
        trial = objective.point(point.x + candidate.step)
        rho = gain_ratio(point, trial, candidate)
        if rho < 0.25:
            self.scalar = 0.25 * point.space.norm(candidate.step)
        elif rho > 0.75 and proposal.on_boundary:
            self.scalar = min(2.0 * self.scalar, self.largest)
        if rho > 1e-4 and trial.is_usable:
            return trial
        self.scalar = min(self.scalar, 0.25 * point.space.norm(candidate.step))
        return None


def _first_radius(point: Point) -> float:
    scale = max(1.0, point.space.norm(point.x))
    default = 0.1 * scale
    if point.gradient_norm == 0.0:
        return default
    along = point.curvature._curvature(point.gradient / point.gradient_norm)
    if not 0.0 < along < math.inf:
        return default
    return min(point.gradient_norm / along, LONGEST * scale)
