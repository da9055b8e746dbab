# SPDX-License-Identifier: Apache-2.0
"""Systems with the Jacobian of an equation: which solutions are trusted, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.boundary import warn
from hesse.checkpoint import FilePath, same_generator
from hesse.errors import OperatorError, Status
from hesse.krylov.auto import Auto
from hesse.krylov.method import Method
from hesse.krylov.solution import Solution
from hesse.krylov.solve import Name, solve
from hesse.operators.algebra import LinearOperator

# |H p| / |p| of more than this, relative to |H b| / |b|, is not a rounding error of zero.
_ROUNDING = 0.5  # an exponent of eps

_SINGULAR = (
    "The Jacobian may be singular: then x is not isolated, and has no derivative. Fix the "
    "variables that may move freely, or give a preconditioner."
)

# A system of these is not solved, however many iterations are taken.
_HOPELESS = (Status.LEAST_SQUARES, Status.NOT_FINITE)


@dataclass(frozen=True)
class AdjointSystem:
    """How systems J y = b and J' y = b are solved."""

    method: Name | Method | Auto = "auto"
    preconditioner: LinearOperator | Tensor | str | None = None
    rtol: float = 1e-5
    max_iterations: int | None = None
    generator: torch.Generator | None = None
    progress: bool = False

    def solve(
        self,
        J: LinearOperator,
        b: Tensor,
        x0: Tensor | None,
        rtol: float,
        checkpoint: FilePath = None,
    ) -> Solution:
        """y with J y = b; raises at negative curvature of a Hessian, and for a singular J."""
        solution = solve(
            J,
            b,
            self.method,
            self.preconditioner,
            x0=x0,
            rtol=rtol,
            max_iterations=self.max_iterations,
            generator=same_generator(self.generator, checkpoint),
            progress=self.progress,
            checkpoint=checkpoint,
        )
        if solution.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        if J.symmetric and solution.direction is not None:
            check_curvature(J, b, solution.direction)
        if solution.status in _HOPELESS:
            raise OperatorError(
                expected="a regular Jacobian: an isolated solution x, with a derivative in l",
                got=f"a system with |b - J y| = {solution.residual_norm:.3g}. "
                f"{solution.status.value}",
                remedy="Add a penalty that makes the solution unique, such as c |x|^2, or fix the "
                "variables that may move freely.",
            )
        if not solution.converged and self.max_iterations is None:
            rounding = torch.finfo(J.dtype).eps ** _ROUNDING
            is_large = solution.residual_norm > rounding * solution.history[0]
            warn(
                f"The adjoint system of an implicit derivative was solved to a residual of "
                f"{solution.residual_norm:.3g} only, of |b| = {solution.history[0]:.3g}. "
                + (_SINGULAR if is_large else solution.status.value)
            )
        return solution


def check_curvature(H: LinearOperator, b: Tensor, direction: Tensor) -> None:
    """Raise if p'Hp <= 0 along a direction p with H p other than zero: H is indefinite then."""
    space = H.domain
    first = b if b.ndim == 1 else b[:, 0]
    along = direction if direction.ndim == 1 else direction[:, 0]
    squared, size = space.inner(along, along), space.norm(first)
    if squared == 0.0 or size == 0.0:
        return
    product, rounding = H._matvec(along), torch.finfo(H.dtype).eps ** _ROUNDING
    curvature, length = space.inner(along, product) / squared, space.norm(product) / squared**0.5
    scale = max(space.norm(H._matvec(first)) / size, length)
    if length > rounding * scale and curvature < rounding * length:
        raise not_a_minimum(curvature)


def not_a_minimum(curvature: float) -> OperatorError:
    """The error for a stationary point with a direction of negative curvature."""
    return OperatorError(
        expected="x to be a minimum of f, whose Hessian is positive definite",
        got=f"a direction of curvature {curvature:.3g}: a saddle point, or x is far from a minimum",
        remedy="Start elsewhere, add a penalty to f, or solve further; for a stationary point of "
        "any kind use hesse.apps.root with the gradient of f.",
    )
