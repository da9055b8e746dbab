# SPDX-License-Identifier: Apache-2.0
"""`method="auto"`: the method that suits A and the arguments of the call."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

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
# What a residual must have fallen to where others were led astray: x may be long all the same.
_FAR = 0.1


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
    if solution.status is not Status.NEGATIVE_CURVATURE and not _ran_away(system, solution):
        return solution
    if system.run.left(solution.products) < _FEWEST_PRODUCTS:
        return replace(solution, status=Status.MAX_PRODUCTS)
    return _continue_with_minres(system, solution)


def _ran_away(system: System, solution: Solution) -> bool:
    """Whether conjugate gradients went along the null space of A, where only rounding curves."""
    has_ended = solution.status in (Status.MAX_ITERATIONS, Status.STAGNATED)
    is_free = system.max_iterations is None
    return has_ended and is_free and not bool(_helped(system, solution, _FAR).all())


def _helped(system: System, solution: Solution, factor: float) -> Tensor:
    """Which columns have a smaller residual than at zero, by this factor."""
    if solution.residual_norms is None:
        return torch.tensor([solution.residual_norm <= factor * system.b_norm])
    return solution.residual_norms <= factor * system.A.codomain.column_norms(system.b)


def _start(system: System, solution: Solution) -> Tensor:
    """Where conjugate gradients ended, except for columns that are better off at the beginning."""
    is_negative = solution.status is Status.NEGATIVE_CURVATURE
    is_kept = _helped(system, solution, 1.0 if is_negative else _FAR)
    start = torch.zeros_like(solution.x) if system.x0 is None else system.x0
    return torch.where(is_kept.to(start.device), solution.x, start)


def _continue_with_minres(system: System, solution: Solution) -> Solution:
    """Continue where conjugate gradients met negative curvature, or again if that led astray."""
    file = None if system.checkpoint is None else system.checkpoint.part("minres")
    system.run.before += solution.products
    later = MINRES().solve_system(replace(system, x0=_start(system, solution), checkpoint=file))
    return replace(
        _nearer(later, solution),
        products=solution.products + later.products,
        iterations=solution.iterations + later.iterations,
        history=solution.history + later.history,
        direction=solution.direction,
    )


def _nearer(later: Solution, earlier: Solution) -> Solution:
    """The later solution, with the columns of the earlier one whose residuals are smaller.

    Unless MINRES has ended at a minimiser of |b - A x|: a smaller residual is then one of rounding.
    """
    if later.converged or later.status is Status.LEAST_SQUARES:
        return later
    if later.residual_norms is None or earlier.residual_norms is None:
        if later.residual_norm <= earlier.residual_norm:
            return later
        return replace(
            later,
            x=earlier.x,
            residual_norm=earlier.residual_norm,
            model_value=earlier.model_value,
        )
    is_nearer = earlier.residual_norms < later.residual_norms
    norms = torch.where(is_nearer, earlier.residual_norms, later.residual_norms)
    return replace(
        later,
        x=torch.where(is_nearer.to(later.x.device), earlier.x, later.x),
        residual_norms=norms,
        residual_norm=float(norms.max()),
    )
