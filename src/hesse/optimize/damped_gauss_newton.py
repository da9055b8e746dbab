# SPDX-License-Identifier: Apache-2.0
"""The damped Gauss-Newton step of Hessian-free optimisation."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hesse.errors import Status
from hesse.krylov.cg import CG
from hesse.krylov.stopping import geometric_grid, relative_progress
from hesse.krylov.system import System
from hesse.operators.algebra import LinearOperator
from hesse.operators.diagonal import IdentityOperator
from hesse.optimize.point import Point, power_for
from hesse.optimize.proposal import Candidate, Proposal
from hesse.progress import Run


class DampedGaussNewton:
    r"""A truncated solution p of (G + lambda I) p = -g by conjugate gradients.

    CG starts from a fraction of its last solution, which carries information from step to step
    (Martens 2010, section 4.5), stops at `max_iterations` or when the model stops improving, and
    keeps some of its iterates, to which the search may go back.

    Args:
        preconditioner: lambda -> an approximation of the inverse of G + lambda I, or None.
        max_iterations: of CG.
        decay: the fraction of the last solution to start from.
        start: the last solution, if there is one.
        limits: what limits leave for the solve.
        matrix: makes another curvature in the place of G, such as one with structural damping; None
            for none. The search still compares the decrease with the model of G, which takes half a
            product.
    """

    def __init__(
        self,
        *,
        preconditioner: Callable[[float], LinearOperator] | None,
        max_iterations: int,
        decay: float = 0.95,
        start: Tensor | None = None,
        limits: Run | None = None,
        matrix: Callable[[Point], LinearOperator] | None = None,
    ) -> None:
        self.preconditioner = preconditioner
        self.max_iterations, self.decay, self.start = max_iterations, decay, start
        self._limits, self._matrix = limits, matrix

    def propose(self, point: Point, scalar: float) -> Proposal:
        """The CG iterates for the damping `scalar`; the best is the last."""
        damping, inner = scalar, point.space.inner
        unit = power_for(point.gradient_norm, point.space.dtype)
        curvature = point.curvature if self._matrix is None else self._matrix(point)
        system = System(
            curvature + damping * IdentityOperator(curvature.domain),
            -unit * point.gradient,
            x0=None if self.start is None else self.decay * unit * self.start,
            preconditioner=self.preconditioner(damping) if self.preconditioner else None,
            rtol=0.0,
            max_iterations=self.max_iterations,
            run=self._limits or Run("solve"),
        )
        method = CG(stop=relative_progress(), keep=geometric_grid(), verify=False)
        solution = method.solve_system(system)
        if solution.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        self.start = solution.x / unit

        def candidate(x: Tensor, model_value: float) -> Candidate:
            """With the change that the undamped model predicts."""
            x, model_value = x / unit, model_value / unit**2
            if self._matrix is not None:
                return Candidate(x, lambda: _change(point, x))
            return Candidate(x, model_value - 0.5 * damping * inner(x, x))

        shorter = [candidate(kept.x, kept.model_value) for kept in solution.iterates]
        if solution.iterates and solution.iterates[-1].iteration == solution.iterations:
            shorter.pop()
        best = candidate(solution.x, solution.model_value)
        return Proposal(best, shorter, status=solution.status)

    def rejected(self) -> None:
        """The last solution lowered f at no length: start the next solve from zero."""
        self.start = None


def _change(point: Point, p: Tensor) -> float:
    """g'p + p'Gp/2."""
    return point.space.inner(point.gradient, p) + 0.5 * point.curvature._curvature(p)
