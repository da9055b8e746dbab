# SPDX-License-Identifier: Apache-2.0
"""Equations F(x, l) = 0 on flat vectors: of a minimiser, a root, a fixed point.

Each gives F through operations of torch, which can be differentiated again and batched; and at
a point that is a constant, its value and its products by the definitions of the library, which know
more operations and contexts. Both are asked for by `implicit_root`.
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
from hesse.curvature.hvp import hvp
from hesse.curvature.jacobian import jacobian_operator
from hesse.curvature.operator import CurvatureOperator
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

    @abstractmethod
    def residual_at(self, spaces: Spaces, x: Tensor, l: Tensor) -> Tensor:
        """F(x, l) at a constant point."""

    @abstractmethod
    def pulled_back(self, spaces: Spaces, x: Tensor, l: Tensor, s: Tensor) -> Tensor:
        """(dF/dl)' s at a constant point."""

    def joint(self, point: dict[str, Tree]) -> Any:
        """g(x, l) as a function of both."""
        return self.g(point["x"], point["l"])

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

    def jacobian(self, spaces: Spaces, x: Tensor, l: Tensor) -> CurvatureOperator:
        return hessian_operator(self.at(spaces, l), spaces.x.unflatten(x))

    def residual_at(self, spaces: Spaces, x: Tensor, l: Tensor) -> Tensor:
        return self.jacobian(spaces, x, l).flat_gradient

    def pulled_back(self, spaces: Spaces, x: Tensor, l: Tensor, s: Tensor) -> Tensor:
        point, direction = _joint_point(spaces, x, l), _joint_point(spaces, s, torch.zeros_like(l))
        return spaces.l.flatten(hvp(self.joint, point, direction)["l"])


class Root(Equation):
    """F as it is given."""

    def residual(self, spaces: Spaces, x: Tensor, l: Tensor) -> Tensor:
        return self.image(spaces, x, l)

    def residual_at(self, spaces: Spaces, x: Tensor, l: Tensor) -> Tensor:
        with torch.no_grad():
            return self.residual(spaces, x, l)

    def pulled_back(self, spaces: Spaces, x: Tensor, l: Tensor, s: Tensor) -> Tensor:
        J = jacobian_operator(self.joint, _joint_point(spaces, x, l))
        return J._rmatvec(s)[spaces.x.n :]

    def jacobian(self, spaces: Spaces, x: Tensor, l: Tensor) -> LinearOperator:
        J = jacobian_operator(self.at(spaces, l), spaces.x.unflatten(x))
        if J.shape == (spaces.x.n, spaces.x.n):
            return J
        raise FunctionError(
            expected=f"as many equations as unknowns, {spaces.x.n}",
            got=f"{J.shape[0]} entries of F(x, l)",
            remedy="Return a tree like x; for more equations than unknowns minimise |F|^2.",
        )


class FixedPoint(Root):
    """F = x - T(x, l)."""

    def residual(self, spaces: Spaces, x: Tensor, l: Tensor) -> Tensor:
        return x - self.image(spaces, x, l)

    def jacobian(self, spaces: Spaces, x: Tensor, l: Tensor) -> LinearOperator:
        return IdentityOperator(spaces.x) - super().jacobian(spaces, x, l)

    def pulled_back(self, spaces: Spaces, x: Tensor, l: Tensor, s: Tensor) -> Tensor:
        return -super().pulled_back(spaces, x, l, s)


def _joint_point(spaces: Spaces, x: Tensor, l: Tensor) -> dict[str, Tree]:
    return {"x": spaces.x.unflatten(x), "l": spaces.l.unflatten(l)}


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
    """(dF/dl)' s, shape (p,); with a graph where gradients are recorded."""
    if not torch.is_grad_enabled():
        return equation.pulled_back(spaces, x.detach(), l.detach(), s.detach())
    with twice_differentiable():
        pull = torch.func.vjp(lambda l: equation.residual(spaces, x, l), l)[1]
        return pull(s)[0]


def push_parameters(equation: Equation, spaces: Spaces, x: Tensor, l: Tensor, dl: Tensor) -> Tensor:
    """(dF/dl) dl, shape (n,): the derivative of the linear u -> (dF/dl)' u, by reverse mode alone.

    Forward mode is missing for operations of torch, and inside another forward mode.
    """
    with twice_differentiable():
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

    with twice_differentiable():
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

    with twice_differentiable():
        push = torch.func.vjp(gradients, torch.zeros_like(y))[1]
        return push(moved)[0]
