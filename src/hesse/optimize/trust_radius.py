# SPDX-License-Identifier: Apache-2.0
"""The trust radius: how far the quadratic model is believed."""

from __future__ import annotations

import math

from hesse.optimize.armijo import rounding
from hesse.optimize.point import Objective, Point
from hesse.optimize.proposal import Candidate, Proposal
from hesse.vectors.inner_products import dot, norm


def agreement(point: Point, trial: Point, candidate: Candidate) -> float:
    """rho, the decrease of f over the decrease of the model; minus infinity where f is not finite.

    Both are raised by the rounding of f, so that the ratio tends to 1 when they drown in it (Conn,
    Gould & Toint 2000, section 17.4.2).
    """
    if not math.isfinite(trial.value):
        return -math.inf
    noise = rounding(point)
    return (point.value - trial.value + noise) / (noise - candidate.predicted)


class TrustRadius:
    """A radius that grows where the model is good and shrinks where it is not.

    It becomes a quarter of the step if rho < 1/4, twice itself if rho > 3/4 at the boundary.
    A step is accepted if rho > 1e-4. The first radius, unless given, is the length of the steepest
    descent step to the minimum of the model along the gradient.

    Source: Nocedal & Wright 2006, algorithm 4.1.
    """

    def __init__(self, point: Point, *, radius: float | None = None, largest: float = 1e10) -> None:
        self.scalar = _first_radius(point) if radius is None else radius
        self.largest = largest

    def judge(self, objective: Objective, point: Point, proposal: Proposal) -> Point | None:
        """The point at the end of the step if it is good enough; updates the radius."""
        candidate = proposal.best
        if not candidate.predicted < 0.0:
            self.scalar *= 0.25
            return None
        trial = objective.point(point.x + candidate.step)
        rho = agreement(point, trial, candidate)
        if rho < 0.25:
            self.scalar = 0.25 * norm(candidate.step)
        elif rho > 0.75 and proposal.on_boundary:
            self.scalar = min(2.0 * self.scalar, self.largest)
        return trial if rho > 1e-4 else None


def _first_radius(point: Point) -> float:
    g = point.gradient
    gHg, gg = point.curvature._curvature(g), dot(g, g)
    if gHg > 0.0:
        return math.sqrt(gg) * gg / gHg
    return 0.1 * max(1.0, norm(point.x))
