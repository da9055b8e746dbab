# SPDX-License-Identifier: Apache-2.0
"""A step in the span of the last one and of a few preconditioned directions."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hesse.errors import Status
from hesse.krylov.cg import CG
from hesse.krylov.system import System
from hesse.operators.algebra import LinearOperator
from hesse.operators.diagonal import IdentityOperator
from hesse.optimize.factory import damped_inverse
from hesse.optimize.point import Point, power_for
from hesse.optimize.proposal import Proposal
from hesse.optimize.subspace import Subspace
from hesse.progress import Run

Damped = Callable[[float], LinearOperator]
"""lambda -> an approximation of the inverse of the curvature + lambda I."""


_CONVEX = 2.0
"""The damping, relative to negative curvature: that direction then counts as the positive one."""


class SubspaceStep:
    r"""The minimiser of the quadratic model in the span of the last step and of new directions.

    The new directions are those of conjugate gradients for (G + lambda I) p = -g, from the minimum
    along the last step on; the products G p that CG takes give the model on the span for every
    other damping too. Where the curvature has an inverse of its own, such as K-FAC, or where CG
    takes no iterations, there is one new direction, -(K + lambda I)^-1 g, with K that curvature or
    the one of the preconditioner. The model is that of the exact Gauss-Newton matrix: length and
    momentum are then the best two numbers (Martens & Grosse 2015, sections 6.4, 7).

    CG ends at a direction of negative curvature, which belongs to the span: a damping beyond that
    curvature makes the model convex, and its minimiser goes along it too.

    Args:
        preconditioner: lambda -> an approximation of the inverse of G + lambda I, or None.
        max_iterations: of CG; 0 for the preconditioned gradient alone.
        matrix: makes the curvature at a point; None if it is the point's own.
        start: the last step, if there was one.
        limits: what limits leave for the solve.
    """

    def __init__(
        self,
        *,
        preconditioner: Damped | None,
        max_iterations: int,
        matrix: Callable[[Point], LinearOperator] | None = None,
        start: Tensor | None = None,
        limits: Run | None = None,
    ) -> None:
        self.preconditioner, self.max_iterations = preconditioner, max_iterations
        self.start = start
        self._matrix, self._limits = matrix, limits

    def propose(self, point: Point, scalar: float) -> Proposal:
        """The minimiser for the damping `scalar`; others at no product."""
        G, inverse = self._model_and_inverse(point, scalar)
        space, g, status = point.space, point.gradient, Status.TRUNCATED
        if inverse is not None:
            model = Subspace.of_two(space, g, G, self.start, -inverse._matvec(g))
        else:
            pairs = [] if self.start is None else [(self.start, G._matvec(self.start))]
            residual = Subspace.of_products(space, g, pairs).residual(scalar)
            found, status = self._directions(G, residual, scalar)
            model = Subspace.of_products(space, g, [*pairs, *found])
        least = _CONVEX * model.least_damping
        best = model.minimiser(max(scalar, least))
        return Proposal(best, status=status, at=model.minimiser, least_damping=least)

    def rejected(self) -> None:
        """No damping lowered f: leave the last step out of the next one."""
        self.start = None

    def _model_and_inverse(
        self, point: Point, damping: float
    ) -> tuple[LinearOperator, LinearOperator | None]:
        """The curvature of the model, and the damped inverse that gives the new direction.

        That of the curvature given, if it has one; without CG the preconditioner. None for CG.
        """
        inverse = self._preconditioner_at(point, damping) if self.max_iterations == 0 else None
        if self._matrix is None:
            return point.curvature, inverse
        A = self._matrix(point)
        own = damped_inverse(A, damping)
        return (point.counted(A), inverse) if own is None else (point.curvature, own)

    def _preconditioner_at(self, point: Point, damping: float) -> LinearOperator:
        if self.preconditioner is None:
            return IdentityOperator(point.space)
        return self.preconditioner(damping)

    def _directions(
        self, G: LinearOperator, residual: Tensor, damping: float
    ) -> tuple[list[tuple[Tensor, Tensor]], Status]:
        """Those of CG with their products; the last one may be of negative curvature."""
        noted, unit = _Noted(G), power_for(G.domain.norm(residual), G.dtype)
        system = System(
            noted + damping * IdentityOperator(G.domain),
            unit * residual,
            preconditioner=self.preconditioner(damping) if self.preconditioner else None,
            rtol=0.0,
            max_iterations=self.max_iterations,
            run=self._limits or Run("solve"),
        )
        solution = CG(verify=False).solve_system(system)
        if solution.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        return noted.pairs, solution.status


class _Noted(LinearOperator):
    """An operator that keeps the directions and the products that are taken with it."""

    def __init__(self, A: LinearOperator) -> None:
        super().__init__(A.domain, symmetric=A.symmetric)
        self._A = A
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def _matvec(self, v: Tensor) -> Tensor:
        product = self._A._matvec(v)
        self.pairs.append((v.clone(), product))
        return product
