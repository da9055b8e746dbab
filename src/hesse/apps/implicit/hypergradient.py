# SPDX-License-Identifier: Apache-2.0
"""`hypergradient`: the gradient of an outer function at a given minimiser of an inner one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.ad.double_backward import twice_differentiable
from hesse.apps.implicit.arguments import check_function, system_of
from hesse.apps.implicit.equation import Minimum, Spaces
from hesse.apps.implicit.implicit_function import estimated_errors
from hesse.boundary import public
from hesse.errors import FunctionError, Status
from hesse.krylov.auto import Auto
from hesse.krylov.method import Method
from hesse.krylov.solve import Name
from hesse.operators.algebra import LinearOperator
from hesse.progress import FilePath
from hesse.result import Result
from hesse.vectors.space import Space, Tree


@dataclass(frozen=True, repr=False)
class Hypergradient(Result):
    """The total derivative of an outer function at a minimiser, with its uncertainty."""

    value: Tensor
    """L(x, l)."""
    gradient: Tree
    """dL/dl, a tree like l."""
    adjoint: Tree
    """s, a tree like x: where to start the next adjoint system."""
    residual: float
    """|df/dx|, of the inner function at x."""
    adjoint_residual: float
    """|f_xx s - L_x|, recomputed."""
    status: Status
    """How the adjoint system ended."""
    products: int
    """Hessian products, those for the errors included."""
    x_error: float | None = None
    """About |x - x*|."""
    error: float | None = None
    """About the norm of the error of the gradient, from both residuals: how much it changes if x
    and s are both improved by a step."""


@public("hesse.apps.hypergradient(outer, inner, x, l)")
def hypergradient(
    outer: Callable[[Any, Any], Tensor],
    inner: Callable[[Any, Any], Tensor],
    x: Tree,
    l: Tree,
    *,
    adjoint: Tree | None = None,
    rtol: float = 1e-5,
    method: Name | Method | Auto = "auto",
    preconditioner: LinearOperator | Tensor | str | None = None,
    max_iterations: int | None = None,
    estimate_error: bool = True,
    generator: torch.Generator | None = None,
    progress: bool = False,
    checkpoint: FilePath = None,
) -> Hypergradient:
    r"""The total derivative of outer(x, l) in l, where x minimises inner(., l).

    $$ \frac{dL}{dl} = L_l - f_{lx}\, s, \qquad f_{xx}\, s = L_x $$

    For an outer loop of one's own, with x from anywhere: hyperparameters by validation loss,
    weights of training examples (where it is their influence), meta-learning. `argmin` gives the
    same inside autograd.

    Args:
        outer, inner: scalar functions L and f of x and l, tensors or trees of tensors.
        x: a minimiser of inner(., l), as exact as the derivative is to be.
        l: the parameters.
        adjoint: where to start the system, the `adjoint` of the last step of an outer loop.
        rtol, method, preconditioner, max_iterations: of the adjoint system, as in `argmin`.
        generator, progress, checkpoint: likewise, as in `hesse.solve`.
        estimate_error: fill in `x_error` and `error`, by two loose systems more.

    Returns:
        Hypergradient(value, gradient, adjoint, residual, adjoint_residual, status, products, ...).

    Cost: an adjoint system, one product an iteration; a gradient of L; a mixed product of three
        gradients of f. The errors take two systems to a tenth, and twice that.

    Raises:
        HesseError: not scalar functions of x; negative curvature of f at x, which is then no
            minimum; a singular Hessian.

    References: Pedregosa 2016, arXiv:1602.02355; Lorraine, Vicol & Duvenaud 2020,
        arXiv:1911.02590.

    >>> inner = lambda x, l: ((x - l) ** 2).sum()
    >>> x, l = torch.full((3,), 2.0), torch.tensor(2.0)
    >>> hypergradient(lambda x, l: x.sum(), inner, x, l).gradient
    tensor(3.)
    """
    check_function("inner", inner)
    check_function("outer", outer)
    system = system_of(
        inner, None, method, preconditioner, rtol, max_iterations, generator, progress
    )
    equation, spaces = Minimum(inner), Spaces(Space.of(x, what="x"), Space.of(l, what="l"))
    point, parameters = (
        space.flatten(tree, what=name).detach()
        for space, tree, name in ((spaces.x, x, "x"), (spaces.l, l, "l"))
    )
    loss = _Outer(outer, spaces, parameters)
    value, g = loss.value_and_slope(point)
    start = None if adjoint is None else spaces.x.flatten(adjoint, what="adjoint").detach()
    H = equation.jacobian(spaces, point, parameters)
    solution = system.solve(H, g, start, rtol, checkpoint)
    implicit = equation.pulled_back(spaces, point, parameters, solution.x)
    errors = None
    if estimate_error:
        errors = estimated_errors(
            *(equation, system, spaces, point, parameters, solution.x),
            lambda x: loss.value_and_slope(x)[1],
            loss.explicit,
        )
    return Hypergradient(
        value=value,
        gradient=spaces.l.unflatten(loss.explicit(point) - implicit),
        adjoint=spaces.x.unflatten(solution.x),
        residual=spaces.x.norm(equation.residual_at(spaces, point, parameters)),
        adjoint_residual=solution.residual_norm,
        status=solution.status,
        products=solution.products + (0 if errors is None else errors.products),
        x_error=None if errors is None else errors.x,
        error=None if errors is None else errors.gradient,
    )


@dataclass(frozen=True)
class _Outer:
    """L on flat vectors, at parameters l."""

    outer: Callable[[Any, Any], Tensor]
    spaces: Spaces
    l: Tensor

    def value_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """L and L_x."""
        return self._differentiated(x, 0)

    def explicit(self, x: Tensor) -> Tensor:
        """L_l."""
        return self._differentiated(x, 1)[1]

    def _differentiated(self, x: Tensor, which: int) -> tuple[Tensor, Tensor]:
        equation = Minimum(self.outer)
        with twice_differentiable():  # a tensor of the inference mode cannot be recorded
            leaves = [tensor.detach().clone().requires_grad_() for tensor in (x, self.l)]
            value = equation.value(self.spaces, *leaves)
            if not isinstance(value, Tensor) or value.ndim != 0:
                raise FunctionError(
                    expected="outer(x, l) to be a scalar tensor",
                    got=f"shape {tuple(value.shape)}"
                    if isinstance(value, Tensor)
                    else type(value).__name__,
                    remedy="Sum or average it.",
                )
            if not value.requires_grad:
                return value, torch.zeros_like(leaves[which])
            (slope,) = torch.autograd.grad(value, leaves[which], allow_unused=True)
        slope = torch.zeros_like(leaves[which]) if slope is None else slope
        return value.detach(), slope.detach()
