# SPDX-License-Identifier: Apache-2.0
"""The Newton step, solved no more accurately than it deserves."""

from __future__ import annotations

import math

from torch import Tensor

from hesse.krylov.cg import cg
from hesse.operators.base import LinearOperator
from hesse.optimize.point import Point
from hesse.optimize.proposal import Candidate, Proposal
from hesse.vectors import dot, norm


class TruncatedNewton:
    r"""p with |H p + g| <= eta |g| by conjugate gradients, within a radius if there is one.

    The forcing term is the second choice of Eisenstat & Walker 1996 (doi:10.1137/0917003), with
    their safeguard,

    $$ \eta_k = 0.9\, (\lVert g_k\rVert / \lVert g_{k-1}\rVert)^2, $$

    at most 0.5, and never tighter than the tolerance of the minimisation asks for. On a direction
    of negative curvature the step is the iterate before it, or, when there is none, the direction
    itself (Nocedal & Wright 2006, algorithm 7.1); within a radius it goes on to the boundary
    (algorithm 7.2).
    """

    def __init__(
        self,
        *,
        gradient_tolerance: float = 0.0,
        max_iterations: int = 500,
        preconditioner: LinearOperator | None = None,
    ) -> None:
        self.gradient_tolerance = gradient_tolerance
        self.max_iterations = max_iterations
        self.preconditioner = preconditioner
        self._eta, self._last_norm = 0.5, math.nan

    def propose(self, point: Point, scalar: float) -> Proposal:
        """A step from `point` within the radius `scalar`."""
        solution = cg(
            point.curvature,
            -point.gradient,
            rtol=self._forcing(point.gradient_norm),
            radius=scalar,
            max_iterations=self.max_iterations,
            preconditioner=self.preconditioner,
            verify=False,
        )
        if solution.iterations == 0 and solution.direction is not None:
            candidate = _along_negative_curvature(point, solution.direction)
        else:
            candidate = Candidate(solution.x, solution.model_value)
        inside = math.isinf(scalar) or norm(candidate.step) < 0.99 * scalar
        return Proposal(candidate, status=solution.status, on_boundary=not inside)

    def rejected(self) -> None:
        """Nothing is carried over from a rejected step."""

    def _forcing(self, gradient_norm: float) -> float:
        if gradient_norm != self._last_norm:  # the same point again after a rejection: the same eta
            if not math.isnan(self._last_norm):
                eta, safeguard = 0.9 * (gradient_norm / self._last_norm) ** 2, 0.9 * self._eta**2
                self._eta = min(0.5, max(eta, safeguard) if safeguard > 0.1 else eta)
            self._last_norm = gradient_norm
        return min(0.5, max(self._eta, 0.5 * self.gradient_tolerance / gradient_norm))


def _along_negative_curvature(point: Point, p: Tensor) -> Candidate:
    """A step along p with p'Hp <= 0, as long as Newton's were the curvature |p'Hp|."""
    slope, curvature = dot(point.gradient, p), point.curvature._curvature(p)
    length = abs(slope) / abs(curvature) if curvature != 0.0 else math.inf
    length = min(length, max(1.0, norm(point.x)) / norm(p))
    return Candidate(length * p, length * slope + 0.5 * length**2 * curvature)
