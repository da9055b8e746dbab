# SPDX-License-Identifier: Apache-2.0
"""The damped Gauss-Newton step of Hessian-free optimisation."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hesse.krylov.cg import cg
from hesse.krylov.stopping import geometric_grid, relative_progress
from hesse.operators.algebra import LinearOperator
from hesse.operators.diagonal import IdentityOperator
from hesse.optimize.point import Point
from hesse.optimize.proposal import Candidate, Proposal
from hesse.vectors.inner_products import dot


class DampedGaussNewton:
    r"""p from (G + lambda I) p = -g by conjugate gradients, cut short, with iterates on the way.

    CG starts from a fraction of its last solution, which carries information from step to step
    (Martens 2010, section 4.5), stops when the model stops improving or at a cap, and keeps some of
    its iterates: the damped model need not be trusted as far as the last one.

    Args:
        preconditioner: lambda -> an approximation of the inverse of G + lambda I, or None.
        max_iterations: the cap.
        decay: the fraction of the last solution to start from.
        start: the last solution, if there is one.
    """

    def __init__(
        self,
        *,
        preconditioner: Callable[[float], LinearOperator] | None,
        max_iterations: int,
        decay: float = 0.95,
        start: Tensor | None = None,
    ) -> None:
        self.preconditioner = preconditioner
        self.max_iterations, self.decay, self.start = max_iterations, decay, start

    def propose(self, point: Point, scalar: float) -> Proposal:
        """Steps of growing length for the damping `scalar`; the best is the last."""
        damping = scalar
        identity = IdentityOperator(point.curvature.domain)
        solution = cg(
            point.curvature + damping * identity,
            -point.gradient,
            x0=None if self.start is None else self.decay * self.start,
            preconditioner=self.preconditioner(damping) if self.preconditioner else None,
            rtol=0.0,
            max_iterations=self.max_iterations,
            stop=relative_progress(),
            keep=geometric_grid(),
            verify=False,
        )
        self.start = solution.x

        def candidate(x: Tensor, model_value: float) -> Candidate:
            return Candidate(x, model_value - 0.5 * damping * dot(x, x))  # the undamped model

        shorter = [candidate(kept.x, kept.model_value) for kept in solution.iterates]
        if solution.iterates and solution.iterates[-1].iteration == solution.iterations:
            shorter.pop()
        best = candidate(solution.x, solution.model_value)
        return Proposal(best, shorter, status=solution.status)

    def rejected(self) -> None:
        """No length of the last solution was any good: start the next solve from zero."""
        self.start = None
