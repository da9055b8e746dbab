# SPDX-License-Identifier: Apache-2.0
"""The truncated Newton step."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from hesse.errors import Status
from hesse.krylov.cg import CG
from hesse.krylov.stopping import EisenstatWalker, ForcingTerm
from hesse.krylov.system import System
from hesse.operators.algebra import LinearOperator
from hesse.optimize.point import Point
from hesse.optimize.proposal import Candidate, Proposal
from hesse.progress import Run

LONGEST = 1e8
"""Of a step, relative to max(1, |x|): a line search of 40 halvings then reaches 1e-4."""


class TruncatedNewton:
    r"""p with |H p + g| <= eta |g| by conjugate gradients, within a radius if there is one.

    The forcing term eta is that of `EisenstatWalker`, but no tighter than the tolerance of the
    minimisation needs. On a direction of negative curvature the step is the iterate before it,
    or, when there is none, the direction itself (Nocedal & Wright 2006, algorithm 7.1); within a
    radius it goes on to the boundary (algorithm 7.2). Steps longer than LONGEST max(1, |x|), as
    where f is flat to rounding, are cut. An H whose structure gives its inverse is solved with
    directly, without a radius.

    Args:
        gradient_tolerance: that of the minimisation.
        max_iterations: of one solve.
        preconditioner: an approximation of the inverse of H.
        limits: the limits of a solve that begins now.
        forcing: the last forcing term, where the minimisation continues.
    """

    def __init__(
        self,
        *,
        gradient_tolerance: float = 0.0,
        max_iterations: int = 500,
        preconditioner: LinearOperator | None = None,
        limits: Callable[[], Run] = lambda: Run("solve"),
        forcing: ForcingTerm | None = None,
    ) -> None:
        self.gradient_tolerance = gradient_tolerance
        self.max_iterations = max_iterations
        self.preconditioner = preconditioner
        self.forcing, self._limits = forcing, limits
        self._rule = EisenstatWalker()
        self.along_gradient = False
        """Whether the next proposal is along the gradient: the last was lower at no length."""

    def propose(self, point: Point, scalar: float) -> Proposal:
        """A step from `point` within the radius `scalar`."""
        if self.along_gradient:
            return Proposal(_along_gradient(point))
        if math.isinf(scalar) and (candidate := _direct(point)) is not None:
            return Proposal(_shortened(point, candidate))
        unit = _unit(point.gradient_norm)
        system = System(
            point.curvature if unit == 1.0 else unit * point.curvature,
            -unit * point.gradient,
            preconditioner=self.preconditioner,
            rtol=self._tolerance(point.gradient_norm),
            max_iterations=self.max_iterations,
            run=self._limits(),
        )
        solution = CG(radius=scalar, verify=False).solve_system(system)
        if solution.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        if solution.iterations == 0 and solution.direction is not None:
            candidate = _along_negative_curvature(point, solution.direction)
        else:
            candidate = _shortened(point, Candidate(solution.x, solution.model_value / unit))
        inside = math.isinf(scalar) or point.space.norm(candidate.step) < 0.99 * scalar
        return Proposal(candidate, status=solution.status, on_boundary=not inside)

    def rejected(self) -> None:
        """No state to drop."""

    def _tolerance(self, gradient_norm: float) -> float:
        self.forcing = self._rule(gradient_norm, self.forcing)
        return min(0.5, max(self.forcing.eta, 0.5 * self.gradient_tolerance / gradient_norm))


def _direct(point: Point) -> Candidate | None:
    """-H^-1 g where the structure of H gives its inverse, if that descends."""
    A = point.curvature
    inverse = A._inverse() if A.is_structured else None
    if inverse is None:
        return None
    step = -inverse._matvec(point.gradient)
    slope = point.space.inner(point.gradient, step)
    return Candidate(step, slope / 2) if slope < 0.0 else None


def _unit(gradient_norm: float) -> float:
    """What the system is multiplied by where squares might under- or overflow."""
    return 1.0 if 1e-100 < gradient_norm < 1e100 else 1.0 / gradient_norm


def _shortened(point: Point, candidate: Candidate) -> Candidate:
    """The step, cut where it is longer than a search would go back over."""
    length = point.space.norm(candidate.step)
    longest = LONGEST * max(1.0, point.space.norm(point.x))
    if not length > longest:
        return candidate
    t, slope = longest / length, point.space.inner(point.gradient, candidate.step)
    return Candidate(t * candidate.step, t * slope * (1 - t / 2))  # p'Hp = -g'p of an iterate


def _along_gradient(point: Point) -> Candidate:
    """A step along the gradient, as long as x."""
    t = max(1.0, point.space.norm(point.x)) / point.gradient_norm
    return Candidate(-t * point.gradient, -t * point.gradient_norm**2)


def _along_negative_curvature(point: Point, p: Tensor) -> Candidate:
    """A step along p with p'Hp <= 0, of the length that Newton's has for curvature |p'Hp|."""
    space = point.space
    slope, curvature = space.inner(point.gradient, p), point.curvature._curvature(p)
    length = abs(slope) / abs(curvature) if curvature != 0.0 else math.inf
    length = min(length, max(1.0, space.norm(point.x)) / space.norm(p))
    return Candidate(length * p, length * slope + 0.5 * length**2 * curvature)
