# SPDX-License-Identifier: Apache-2.0
"""Exact Hessian-vector products: three orders of differentiation, and the graph kept at a point.

With g = grad f, the product H v is the derivative of g along v. It can be taken as

    forward-over-reverse    d/dt g(x + t v)       forward mode over the gradient
    reverse-over-forward    grad (g(x)'v)         the slope g'v by forward mode, then its gradient
    reverse-over-reverse    grad (g(x)'v)         the gradient with a graph, then its gradient

In units of the forward pass's matrix products a gradient costs 3 and these cost 9, 8 and 9. The
last one splits into the graph of g, which does not depend on v, and its backward pass, which costs
6: `RetainedHessian` keeps the graph, so that a repeated product costs two gradients.

All functions here take f as a function of a list of tensors, and x and v as such lists.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from hesse.ad.checkpointing import check_slope, noting_recomputation
from hesse.ad.evaluate import (
    check_depends,
    custom_function,
    derivative,
    gradient_of,
    graph_nodes,
    twice_differentiable,
)
from hesse.ad.forward_mode import ForwardMode
from hesse.ad.variables import LeafFunction, Leaves, number, tracked


class Product(NamedTuple):
    """H v with what came along: the value always, the gradient where it is free or asked for."""

    product: list[Tensor]
    value: Tensor
    gradient: list[Tensor] | None
    custom: str | None = None
    """A user's `autograd.Function` in f, for which the product must be checked."""


Mode = Callable[[LeafFunction, Leaves, Leaves, str, bool], Product]
"""(f, x, v, call, with_gradient) -> Product."""


def forward_over_reverse(
    f: LeafFunction, x: Leaves, v: Leaves, call: str, with_gradient: bool = False
) -> Product:
    """d/dt grad f(x + t v) at t = 0. Value and gradient are free."""

    def checked(leaves: Leaves) -> Tensor:
        value = f(leaves)
        check_depends(value, call)
        return value

    with twice_differentiable(), ForwardMode():
        gradient_and_value = torch.func.grad_and_value(checked)
        primal, tangent = torch.func.jvp(gradient_and_value, (tuple(x),), (tuple(v),))[:2]
    (gradient, value), (product, _) = primal, tangent
    return Product(list(product), value, list(gradient))


def reverse_over_forward(
    f: LeafFunction, x: Leaves, v: Leaves, call: str, with_gradient: bool = False
) -> Product:
    """grad of the slope f'(x; v). The value is free; the gradient costs another gradient."""

    def slope_and_value(leaves: Leaves) -> tuple[Tensor, Tensor]:
        value, slope = torch.func.jvp(f, (leaves,), (tuple(v),))[:2]
        return slope, value

    with twice_differentiable(), ForwardMode(differentiated=True):
        product, (_, value) = torch.func.grad_and_value(slope_and_value, has_aux=True)(tuple(x))
    product = list(product)
    gradient = None
    if with_gradient or not any(bool(part.any()) for part in product):
        # A zero product may come from a value that does not depend on x: reverse mode can tell.
        gradient = value_and_gradient(f, x, call)[1]
    return Product(product, value, gradient)


def reverse_over_reverse(
    f: LeafFunction, x: Leaves, v: Leaves, call: str, with_gradient: bool = False
) -> Product:
    """grad of g(x)'v with v held fixed. Value and gradient are free."""
    prepared = RetainedHessian(f, x, call)
    prepared.check()
    custom = prepared.custom
    return Product(prepared.product(v, keep=False), prepared.value, prepared.gradient, custom)


class HessianKind:
    """Prepare H v: grad^2 f(x) v of a scalar f."""

    quantities = ("product",)

    def __init__(self, call: str) -> None:
        self.call = call

    def value(self, function: LeafFunction, x: Leaves) -> Tensor:
        """f(x)."""
        with twice_differentiable():  # not no_grad: f may differentiate a network inside
            return number(function(x))

    def retain(self, function: LeafFunction, x: Leaves) -> RetainedHessian:
        """The kept graph at x."""
        return RetainedHessian(function, x, self.call)


def value_and_gradient(f: LeafFunction, x: Leaves, call: str) -> tuple[Tensor, list[Tensor]]:
    """f(x) and its gradient, without a graph."""
    with twice_differentiable():
        leaves = tracked(x)
        value, recomputes = noting_recomputation(lambda: f(leaves))
        check_depends(value, call)
        gradient = gradient_of(value, leaves, call)
        if recomputes:
            check_slope(f, leaves, value.detach(), gradient, call)
        return number(value), gradient


class RetainedHessian:
    """The graph of the gradient, kept at x: value and gradient are there, a product costs 6 units.

    The value costs a forward pass; the gradient and its graph are added when first asked for.
    Memory: the residuals of the gradient and of its graph, until the object is released.
    """

    def __init__(self, f: LeafFunction, x: Leaves, call: str) -> None:
        self._call = call
        with twice_differentiable():
            self._x = tracked(x)
            self._value, self.recomputes = noting_recomputation(lambda: f(self._x))
            check_depends(self._value, call)
        self._f = f

    @property
    def value(self) -> Tensor:
        """f(x)."""
        return number(self._value)

    @property
    def gradient(self) -> list[Tensor]:
        """grad f(x), one tensor a leaf."""
        return [part.detach() for part in self._graph]

    @property
    def custom(self) -> str | None:
        """A user's `autograd.Function` in f; raises if it cannot be differentiated twice."""
        return self._custom

    @cached_property
    def _custom(self) -> str | None:
        return custom_function(self._value)

    @property
    def nodes(self) -> list[str]:
        """The names of the nodes of the graph of f."""
        return [node.name() for node in graph_nodes(self._value)]

    @cached_property
    def _graph(self) -> list[Tensor]:
        with twice_differentiable():
            return gradient_of(self._value, self._x, self._call, create_graph=True)

    def check(self) -> None:
        """Raise unless the gradient is that of the value, where it may be another."""
        if self.recomputes:
            with twice_differentiable():
                check_slope(self._f, self._x, self.value, self.gradient, self._call)

    def product(self, v: Leaves, *, keep: bool = True) -> list[Tensor]:
        """H v; with keep=False the graph is freed on the way."""
        _ = self._custom  # raises if the derivative would be a wrong one
        # Where g does not depend on x at all (f linear in a leaf) there is nothing to
        # differentiate.
        pairs = [(g, w) for g, w in zip(self._graph, v, strict=True) if g.requires_grad]
        if not pairs:
            return [torch.zeros_like(leaf) for leaf in self._x]
        graph, weights = zip(*pairs, strict=True)
        with twice_differentiable():
            return derivative(graph, self._x, weights, retain_graph=keep)
