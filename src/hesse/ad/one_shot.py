# SPDX-License-Identifier: Apache-2.0
"""One-shot Hessian-vector products: orders of differentiation, and differences of gradients.

With g = grad f, the product H v is the derivative of g along v. It can be taken as

    forward-over-reverse    d/dt g(x + t v)       forward mode over the gradient
    reverse-over-forward    grad (g(x)'v)         the slope g'v by forward mode, then its gradient
    reverse-over-reverse    grad (g(x)'v)         the gradient with a graph, then its gradient

In units of the forward pass's matrix products a gradient costs 3 and these cost 9, 8 and 9.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hesse.ad.double_backward import check_depends, twice_differentiable
from hesse.ad.finite_differences import central_difference, forward_difference
from hesse.ad.forward_mode import (
    FORWARD_OVER_REVERSE,
    REVERSE_OVER_FORWARD,
    ForwardMode,
    check_rules,
)
from hesse.ad.hessian import HessianGraph, value_and_gradient
from hesse.ad.product import Mode, Product
from hesse.ad.variables import LeafFunction, Leaves
from hesse.vectors.checks import check_constant


def forward_over_reverse(
    f: LeafFunction, x: Leaves, v: Leaves, with_gradient: bool = False
) -> Product:
    """d/dt grad f(x + t v) at t = 0. Value and gradient are free."""

    def checked(leaves: Leaves) -> Tensor:
        value = f(leaves)
        check_depends(value)
        check_rules(value, FORWARD_OVER_REVERSE)
        return value

    direction, size = _of_usual_size(v)
    with twice_differentiable(), ForwardMode():
        gradient_and_value = torch.func.grad_and_value(checked)
        primal, tangent = torch.func.jvp(gradient_and_value, (tuple(x),), (tuple(direction),))[:2]
    (gradient, value), (product, _) = primal, tangent
    check_constant("what f reads", product)
    return Product(_times(size, product), value, list(gradient))


def reverse_over_forward(
    f: LeafFunction, x: Leaves, v: Leaves, with_gradient: bool = False
) -> Product:
    """grad of the slope f'(x; v). The value is free; the gradient costs another gradient."""
    direction, size = _of_usual_size(v)

    def slope_and_value(leaves: Leaves) -> tuple[Tensor, Tensor]:
        value, slope = torch.func.jvp(f, (leaves,), (tuple(direction),))[:2]
        check_rules(value, REVERSE_OVER_FORWARD)
        return slope, value

    with twice_differentiable(), ForwardMode():
        product, (_, value) = torch.func.grad_and_value(slope_and_value, has_aux=True)(tuple(x))
    product = _times(size, product)
    check_constant("what f reads", product)
    gradient = None
    if with_gradient or not any(bool(part.any()) for part in product):
        # A zero product may come from a value that does not depend on x: reverse mode can tell.
        gradient = value_and_gradient(f, x)[1]
    return Product(product, value, gradient)


def at_rounded_point(f: LeafFunction, x: Leaves, v: Leaves, with_gradient: bool = False) -> Product:
    """As `reverse_over_reverse`, with x moved by a few units of its last place.

    Rounding is another everywhere: products differ as much as rounding makes them uncertain.
    """
    moved = [leaf * (1 + 4 * torch.finfo(leaf.dtype).eps) for leaf in x]
    return reverse_over_reverse(f, moved, v, with_gradient)


def reverse_over_reverse(
    f: LeafFunction, x: Leaves, v: Leaves, with_gradient: bool = False
) -> Product:
    """grad of g(x)'v with v held fixed. Value and gradient are free."""
    graph = HessianGraph(f, x)
    graph.check()
    custom = graph.custom_function
    return Product(graph.product(v, keep=False), graph.value, graph.gradient, custom)


# Larger and smaller directions are scaled; within it nothing is copied.
_USUAL = 2.0**-10, 2.0**10


def _of_usual_size(v: Leaves) -> tuple[Leaves, float]:
    """v / s with a power of two s, by which its largest entry is of the usual size, and s.

    torch's forward rules are linear in exact arithmetic only. Some add terms as large as the primal
    that cancel: with a tiny v they return their rounding errors.
    """
    largest = max((float(part.abs().amax()) for part in v if part.numel()), default=0.0)
    if _USUAL[0] <= largest <= _USUAL[1] or largest == 0.0 or not math.isfinite(largest):
        return v, 1.0
    limit = min(math.frexp(torch.finfo(part.dtype).max)[1] for part in v) - 2
    size = 2.0 ** max(-limit, min(math.frexp(largest)[1], limit))
    return [part / size for part in v], size


def _times(size: float, product: Leaves) -> list[Tensor]:
    return [part if size == 1.0 else size * part for part in product]


ONE_SHOT_MODES: dict[str, Mode] = {
    "reverse-over-reverse": reverse_over_reverse,
    "forward-over-reverse": forward_over_reverse,
    "reverse-over-forward": reverse_over_forward,
    "finite-difference": central_difference,
    "forward-difference": forward_difference,
}
