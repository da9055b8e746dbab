# SPDX-License-Identifier: Apache-2.0
"""The trust radius: the length of steps up to which the quadratic model is trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from hesse.operators.algebra import LinearOperator
from hesse.optimize.point import LONGEST, Objective, Point, unit_for
from hesse.optimize.proposal import Candidate, LoopDescent, LoopSearch, Proposal


def gain_ratio(point: Point, trial: Point, candidate: Candidate) -> float:
    """rho, the decrease of f over that of the model; minus infinity where f is not finite.

    The rounding error of f is added to both, so that the ratio tends to 1 where they are smaller
    than it (Conn, Gould & Toint 2000, section 17.4.2).
    """
    if not math.isfinite(trial.value):
        return -math.inf
    noise = point.rounding_error
    predicted = noise - candidate.predicted
    return (point.value - trial.value + noise) / predicted if predicted else 0.0


@dataclass
class RadiusState:
    """The radius, and what a Euclidean length is multiplied by to be in its norm."""

    radius: float = 0.0
    stretch: float = 1.0


class TrustRadius(LoopSearch):
    """A radius that grows where the model predicts f well and shrinks where it does not.

    It becomes a quarter of the step's length if rho < 1/4, and doubles if rho > 3/4 for a step to
    the boundary. A step is accepted if rho > 1e-4. The first radius is the length of the step to
    the minimum of the model along the gradient; or, where it starts long because Newton's step
    costs no more than another, sqrt(n) max(1, |x|). Lengths are Euclidean, or in the norm of the
    inverse of a preconditioner.

    Source: Nocedal & Wright 2006, algorithm 4.1.
    """

    def __init__(
        self,
        preconditioner: LinearOperator | None = None,
        *,
        largest: float = 1e100,
        starts_long: bool = False,
    ) -> None:
        self.state = RadiusState()
        self.preconditioner, self.largest = preconditioner, largest
        self._starts_long = starts_long

    @property
    def scalar(self) -> float:
        """The radius."""
        return self.state.radius

    @scalar.setter
    def scalar(self, radius: float) -> None:
        self.state.radius = radius

    def begin(self, point: Point, descent: LoopDescent) -> None:
        """The first radius. At most one product."""
        scales = scales_at(point, self.preconditioner)
        if self._starts_long:
            self.scalar, self.state.stretch = point.space.n**0.5 * scales.longest, scales.stretch
            return
        along = curvature_at(point, descent)
        self.scalar, self.state.stretch = 0.1 * scales.longest, scales.stretch
        if 0.0 < along < math.inf:
            self.scalar = min(scales.slope / along, LONGEST * scales.longest)

    def moved(self, point: Point, length: float, descent: LoopDescent) -> None:
        """Steps from there may be as long as the way to it."""
        self.scalar = max(self.scalar, length * self.state.stretch)

    def is_short(self, length: float) -> bool:
        """Whether the radius is not above this Euclidean length."""
        return self.scalar <= length * self.state.stretch

    def judge(self, objective: Objective, point: Point, proposal: Proposal) -> Point | None:
        """The point at the end of the step if f falls enough there; updates the radius."""
        candidate = proposal.best
        if not candidate.predicted < 0.0:
            self.scalar *= 0.25
            return None
        trial = objective.point(point.x + candidate.step)
        rho, length = gain_ratio(point, trial, candidate), self._length(point, candidate)
        if rho < 0.25:
            self.scalar = 0.25 * length
        elif rho > 0.75 and proposal.on_boundary:
            self.scalar = min(2.0 * self.scalar, self.largest)
        if rho > 1e-4 and trial.is_usable:
            return trial
        self.scalar = min(self.scalar, 0.25 * length)
        return None

    def _length(self, point: Point, candidate: Candidate) -> float:
        euclidean = point.space.norm(candidate.step)
        if candidate.length is None:
            return euclidean
        if euclidean > 0.0 and self.preconditioner is not None:
            self.state.stretch = candidate.length / euclidean
        return candidate.length


class Scales(NamedTuple):
    """Sizes at a point in the norm of the inverse of a preconditioner M, and in its dual."""

    longest: float
    """max(1, |x|), taken as the length of a step along M g."""
    stretch: float
    """What a Euclidean length along M g is multiplied by."""
    slope: float
    """The root of g'M g."""


def scales_at(point: Point, preconditioner: LinearOperator | None) -> Scales:
    """The sizes at a point; Euclidean without a preconditioner."""
    space, slope = point.space, point.gradient_norm
    longest = max(1.0, space.norm(point.x))
    if preconditioner is None or slope == 0.0:
        return Scales(longest, 1.0, slope)
    unit = unit_for(slope)
    g = unit * point.gradient
    d = preconditioner._matvec(g)
    norm = math.sqrt(max(space.inner(g, d), 0.0)) or 1.0
    stretch = norm / (space.norm(d) or 1.0)
    return Scales(longest * stretch, stretch, norm / unit)


def curvature_at(point: Point, descent: LoopDescent) -> float:
    """That along the (preconditioned) gradient; NaN where there is none."""
    return descent.first_curvature(point) if point.gradient_norm > 0.0 else math.nan
