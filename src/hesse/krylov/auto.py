# SPDX-License-Identifier: Apache-2.0
"""`method="auto"`: the method that suits A and the arguments of the call."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from hesse.errors import Status
from hesse.krylov.block_cg import BlockCG
from hesse.krylov.cg import CG
from hesse.krylov.direct import Direct
from hesse.krylov.gmres import GMRES
from hesse.krylov.lsmr import LSMR
from hesse.krylov.minres import MINRES
from hesse.krylov.solution import Solution
from hesse.krylov.system import System
from hesse.operators.algebra import LinearOperator

# A residual at the start, a step, and a residual at the end.
_FEWEST_PRODUCTS = 3


@dataclass(frozen=True)
class Auto:
    """The exact inverse if it is cheap and no option of an iteration is given; else an iteration.

    That is LSMR for rectangular A, GMRES for A not known to be symmetric, else conjugate gradients,
    from which MINRES continues at a direction of negative curvature.
    """

    name: ClassVar[str] = "auto"
    is_homogeneous: ClassVar[bool] = True

    def solve_system(self, system: System) -> Solution:
        """The solution for a vector or a block b."""
        inverse = _cheap_inverse(system)
        if inverse is None:
            return _solve_iteratively(system)
        solution = Direct().solve_with(inverse, system)
        if solution.converged:
            return solution
        later = _solve_iteratively(system)
        return replace(later, products=solution.products + later.products)


def _cheap_inverse(system: System) -> LinearOperator | None:
    """The inverse, where A has a cheap one and no option of an iteration is given."""
    options = system.x0, system.preconditioner, system.max_iterations
    if not system.run.is_unlimited or any(option is not None for option in options):
        return None
    rows, columns = system.A.shape
    return system.A._inverse() if rows == columns else None


def _solve_iteratively(system: System) -> Solution:
    A = system.A
    if A.shape[0] != A.shape[1]:
        return LSMR().solve_system(system)
    if not A.symmetric:
        return GMRES().solve_system(system)
    method = CG() if system.b.ndim == 1 else BlockCG()
    solution = method.solve_system(system)
    if solution.status is not Status.NEGATIVE_CURVATURE:
        return solution
    if system.run.left(solution.products) < _FEWEST_PRODUCTS:
        return replace(solution, status=Status.MAX_PRODUCTS)
    return _continue_with_minres(system, solution)


def _continue_with_minres(system: System, solution: Solution) -> Solution:
    """Continue from the iterate at which conjugate gradients met negative curvature."""
    file = None if system.checkpoint is None else system.checkpoint.part("minres")
    system.run.before += solution.products
    later = MINRES().solve_system(replace(system, x0=solution.x, checkpoint=file))
    return replace(
        later,
        products=solution.products + later.products,
        iterations=solution.iterations + later.iterations,
        history=solution.history + later.history,
        direction=solution.direction,
    )
