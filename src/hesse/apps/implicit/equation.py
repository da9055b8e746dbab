# SPDX-License-Identifier: Apache-2.0
"""Equations F(x, l) = 0 on flat vectors: of a minimiser, a root, a fixed point.

Each gives F through operations of torch, which can be differentiated again and batched, and its
Jacobian with respect to x as an operator, for systems. Both are asked for by `implicit_root`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.ad.double_backward import twice_differentiable
from hesse.curvature.hessian import hessian_operator
from hesse.curvature.jacobian import jacobian_operator
from hesse.errors import FunctionError
from hesse.operators.algebra import LinearOperator
from hesse.operators.diagonal import IdentityOperator
from hesse.surroundings import users_contexts
from hesse.vectors.space import Space, Tree
from hesse.vectors.trees import map_leaves, walk


@dataclass(frozen=True)
class Spaces:
    """Of the unknowns x and of the parameters l."""

    x: Space
    l: Space


@dataclass(frozen=True)
class Equation(ABC):
    """F(x, l) = 0, from a function g of the user's of trees x and l."""

    g: Callable[[Any, Any], Any]

    @abstractmethod
    def residual(self, spaces: Spaces, x: Tensor, l: Tensor) -> Tensor:
        """F(x, l), shape (n,), by operations of torch."""

    @abstractmethod
    def jacobian(self, spaces: Spaces, x: Tensor, l: Tensor) -> LinearOperator:
        """dF/dx at a point, an operator on the space of x."""

    def at(self, spaces: Spaces, l: Tensor) -> Callable[[Tree], Any]:
        """g(., l) as a function of trees."""
        parameters = spaces.l.unflatten(l)
        return lambda x: self.g(x, parameters)

    def value(self, spaces: Spaces, x: Tensor, l: Tensor) -> Any:
        """g(x, l)."""
        with users_contexts():
            return self.g(spaces.x.unflatten(x), spaces.l.unflatten(l))

    def image(self, spaces: Spaces, x: Tensor, l: Tensor) -> Tensor:
        """g(x, l) as a flat vector, where that is a tree like x."""
        return flat(spaces.x, self.value(spaces, x, l), "the result")


class Minimum(Equation):
    """F = df/dx of a scalar f; its Jacobian is the Hessian."""

    def residual(self, spaces: Spaces, x: Tensor, l: Tensor) -> Tensor:
        return torch.func.grad(lambda x: self.value(spaces, x, l))(x)

    def jacobian(self, spaces: Spaces, x: Tensor, l: Tensor) -> LinearOperator:
        return hessian_operator(self.at(spaces, l), spaces.x.unflatten(x))


class Root(Equation):
    """F as it is given."""

    def residual(self, spaces: Spaces, x: Tensor, l: Tensor) -> Tensor:
        return self.image(spaces, x, l)

    def jacobian(self, spaces: Spaces, x: Tensor, l: Tensor) -> LinearOperator:
        J = jacobian_operator(self.at(spaces, l), spaces.x.unflatten(x))
        if J.shape == (spaces.x.n, spaces.x.n):
            return J
        raise FunctionError(
            expected=f"as many equations as unknowns, {spaces.x.n}",
            got=f"{J.shape[0]} entries of F(x, l)",
            remedy="Return a tree like x; for more equations than unknowns minimise |F|^2.",
        )


class FixedPoint(Equation):
    """F = x - T(x, l)."""

    def residual(self, spaces: Spaces, x: Tensor, l: Tensor) -> Tensor:
        return x - self.image(spaces, x, l)

    def jacobian(self, spaces: Spaces, x: Tensor, l: Tensor) -> LinearOperator:
        return IdentityOperator(spaces.x) - Root(self.g).jacobian(spaces, x, l)


def flat(space: Space, tree: Tree, what: str) -> Tensor:
    """The flat vector of a tree, which can be differentiated; raises unless the tree fits."""
    leaves = [leaf for _, leaf in walk(tree, what)]
    shapes = [tuple(leaf.shape) for leaf in leaves]
    if shapes != [tuple(shape) for shape in space.shapes]:
        raise FunctionError(
            expected=f"{what} to be a tree like x ({space.describe()})",
            got=f"tensors of the shapes {shapes[:4]}",
            remedy="Return one tensor for each of x, of its shape and in its order.",
        )
    return torch.cat([leaf.reshape(-1).to(space.dtype) for leaf in leaves])


def space_of(tree: Tree, what: str) -> Space:
    """The space of a tree, whose leaves may be batched by `torch.vmap`: that of one member."""
    shaped = map_leaves(
        lambda leaf: (
            torch.empty(leaf.shape, dtype=leaf.dtype, device=leaf.device)
            if isinstance(leaf, Tensor)
            else leaf
        ),
        tree,
    )
    return Space.of(shaped, what=what)


def pull_to_parameters(
    equation: Equation, spaces: Spaces, x: Tensor, l: Tensor, s: Tensor
) -> Tensor:
    """(dF/dl)' s, shape (p,)."""
    with _recording(x, l, s) as (x, l, s):
        pull = torch.func.vjp(lambda l: equation.residual(spaces, x, l), l)[1]
        return pull(s)[0]


def push_parameters(equation: Equation, spaces: Spaces, x: Tensor, l: Tensor, dl: Tensor) -> Tensor:
    """(dF/dl) dl, shape (n,): the derivative of the linear u -> (dF/dl)' u, by reverse mode alone.

    Forward mode is missing for operations of torch, and inside another forward mode.
    """
    with _recording(x, l, dl) as (x, l, dl):
        pull = torch.func.vjp(lambda l: equation.residual(spaces, x, l), l)[1]
        push = torch.func.vjp(lambda u: pull(u)[0], torch.zeros_like(x))[1]
        return push(dl)[0]


def bilinear_gradient(
    equation: Equation, spaces: Spaces, x: Tensor, l: Tensor, left: Tensor, right: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients in x and in l of left' (dF/dx) right; of blocks, summed over the columns."""

    def form(x: Tensor, l: Tensor) -> Tensor:
        pull = torch.func.vjp(lambda x: equation.residual(spaces, x, l), x)[1]
        if left.ndim == 1:
            return (pull(left)[0] * right).sum()
        columns = zip(left.unbind(1), right.unbind(1), strict=True)
        return torch.stack([(pull(u)[0] * v).sum() for u, v in columns]).sum()

    with _recording(x, l, left, right) as (x, l, left, right):
        return torch.func.grad(form, argnums=(0, 1))(x, l)


def bilinear_push(
    equation: Equation,
    spaces: Spaces,
    point: tuple[Tensor, Tensor],
    moved: tuple[Tensor, Tensor],
    y: Tensor,
    *,
    transposed: bool,
) -> Tensor:
    """(dJ) y, or (dJ)' y, where J = dF/dx changes with (x, l) = point by `moved`, (dx, dl).

    By reverse mode alone, as in `push_parameters`: w -> the gradients of w'J y are linear in w.
    """

    def gradients(w: Tensor) -> tuple[Tensor, Tensor]:
        left, right = (y, w) if transposed else (w, y)
        return bilinear_gradient(equation, spaces, *point, left, right)

    with _recording(*point, *moved, y):
        push = torch.func.vjp(gradients, torch.zeros_like(y))[1]
        return push(moved)[0]


class _recording:
    """A context that differentiates twice; tensors are constants unless gradients are wanted."""

    def __init__(self, *tensors: Tensor) -> None:
        wanted = torch.is_grad_enabled()
        self.tensors = tensors if wanted else tuple(tensor.detach() for tensor in tensors)
        self.context = twice_differentiable()

    def __enter__(self) -> tuple[Tensor, ...]:
        self.context.__enter__()
        return self.tensors

    def __exit__(self, *error: Any) -> None:
        self.context.__exit__(*error)
