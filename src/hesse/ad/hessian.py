# SPDX-License-Identifier: Apache-2.0
"""The gradient of a function and the graph of it, whose backward pass is a Hessian-vector product.

With g = grad f, H v is the gradient of g(x)'v with v held fixed. The graph of g does not depend on
v: it is retained, and a product is its backward pass, 6 units where the forward pass of f takes 1
and a gradient 3.

All functions here take f as a function of a list of tensors, and x and v as such lists.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hesse.ad.double_backward import (
    check_depends,
    derivative,
    differentiating,
    gradient_of,
    noting_recomputation,
    twice_differentiable,
)
from hesse.ad.graph_nodes import custom_function, graph_nodes, leaves_of
from hesse.ad.other_leaves import check_earlier_leaves, check_other_leaves, mark
from hesse.ad.slope_check import check_slope
from hesse.ad.torch_calls import TorchCalls
from hesse.ad.variables import LeafFunction, Leaves, number, tracked


def value_and_gradient(f: LeafFunction, x: Leaves) -> tuple[Tensor, list[Tensor]]:
    """f(x) and its gradient, without a graph."""
    with differentiating():
        leaves = _leaves(f, x)
        with TorchCalls():
            value, recomputes = noting_recomputation(lambda: f(leaves))
        check_depends(value)
        gradient = gradient_of(value, leaves)
        if recomputes:
            with TorchCalls():
                check_slope(f, leaves, value.detach(), gradient)
        return number(value), gradient


def _leaves(f: LeafFunction, x: Leaves) -> Leaves:
    """x as leaves of a graph, which are known again if f stores what it computes from them."""
    leaves = tracked(x)
    if not _knows_its_leaves(f):
        mark(leaves, f)
    return leaves


def _knows_its_leaves(f: LeafFunction) -> bool:
    return getattr(f, "knows_its_leaves", False)


class HessianGraph:
    """The retained graph of grad f at x: value and gradient are there, a product costs 6 units.

    The value costs a forward pass; the gradient and its graph are added when first asked for.
    Memory: the residuals of the gradient and of its graph, until the object is released.
    """

    def __init__(self, f: LeafFunction, x: Leaves) -> None:
        with differentiating():
            self._x = _leaves(f, x)
            with TorchCalls():
                self._value, self.needs_check = noting_recomputation(lambda: f(self._x))
            check_depends(self._value)
        self._f = f

    @property
    def value(self) -> Tensor:
        """f(x)."""
        return number(self._value)

    @property
    def outputs(self) -> list[Tensor]:
        """f(x), in a list."""
        return [self.value]

    @property
    def gradient(self) -> list[Tensor]:
        """grad f(x), one tensor a leaf."""
        return [part.detach() for part in self._graph]

    @property
    def custom_function(self) -> str | None:
        """A user's `autograd.Function` in f; raises if it cannot be differentiated twice."""
        return self._custom_function

    @cached_property
    def _custom_function(self) -> str | None:  # a walk through the graph
        nodes = list(graph_nodes(self._value))
        if not _knows_its_leaves(self._f):
            self._check_leaves(nodes)
        return custom_function(self._value, nodes)

    def _check_leaves(self, nodes: list[Any]) -> None:
        others = leaves_of(nodes)
        for leaf in self._x:
            others.pop(id(leaf), None)
        if others:
            check_earlier_leaves(others.values(), self._f)
            names = [f"a leaf of x, of shape {tuple(leaf.shape)}," for leaf in self._x]
            check_other_leaves(others.values(), self._x, names)

    @property
    def node_names(self) -> list[str]:
        """The names of the nodes of the graph of f."""
        return [node.name() for node in graph_nodes(self._value)]

    @property
    def retained(self) -> list[Tensor]:
        """The gradient with its graph, and the value."""
        return [self._value, *(part for part in self._graph if part.requires_grad)]

    @cached_property
    def _graph(self) -> list[Tensor]:
        with differentiating():
            return gradient_of(self._value, self._x, create_graph=True)

    def check(self) -> None:
        """Raise unless the gradient is that of the value, where it may be another."""
        if self.needs_check:
            with twice_differentiable():
                check_slope(self._f, self._x, self.value, self.gradient)

    def apply(self, quantity: str, direction: Leaves) -> list[Tensor]:
        """H v, the only quantity."""
        return self.product(direction)

    def product(self, v: Leaves, *, keep: bool = True) -> list[Tensor]:
        """H v; with keep=False the graph is freed on the way."""
        _ = self.custom_function  # raises if the derivative would be a wrong one
        # Where g does not depend on x at all (f linear in a leaf) there is nothing to
        # differentiate.
        pairs = [(g, w) for g, w in zip(self._graph, v, strict=True) if g.requires_grad]
        if not pairs:
            return [torch.zeros_like(leaf) for leaf in self._x]
        graph, weights = zip(*pairs, strict=True)
        with differentiating():
            return derivative(graph, self._x, weights, retain_graph=keep)
