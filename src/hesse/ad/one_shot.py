# SPDX-License-Identifier: Apache-2.0
"""One-shot Hessian-vector products: orders of differentiation, and differences of gradients.

With g = grad f, the product H v is the derivative of g along v. It can be taken as

    forward-over-reverse    d/dt g(x + t v)       forward mode over the gradient
    reverse-over-forward    grad (g(x)'v)         the slope g'v by forward mode, then its gradient
    reverse-over-reverse    grad (g(x)'v)         the gradient with a graph, then its gradient

In units of the forward pass's matrix products a gradient costs 3 and these cost 9, 8 and 9.
"""

from __future__ import annotations

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


def forward_over_reverse(
    f: LeafFunction, x: Leaves, v: Leaves, with_gradient: bool = False
) -> Product:
    """d/dt grad f(x + t v) at t = 0. Value and gradient are free."""

    def checked(leaves: Leaves) -> Tensor:
        value = f(leaves)
        check_depends(value)
        check_rules(value, FORWARD_OVER_REVERSE)
        return value

    with twice_differentiable(), ForwardMode():
        gradient_and_value = torch.func.grad_and_value(checked)
        primal, tangent = torch.func.jvp(gradient_and_value, (tuple(x),), (tuple(v),))[:2]
    (gradient, value), (product, _) = primal, tangent
    return Product(list(product), value, list(gradient))


def reverse_over_forward(
    f: LeafFunction, x: Leaves, v: Leaves, with_gradient: bool = False
) -> Product:
    """grad of the slope f'(x; v). The value is free; the gradient costs another gradient."""

    def slope_and_value(leaves: Leaves) -> tuple[Tensor, Tensor]:
        value, slope = torch.func.jvp(f, (leaves,), (tuple(v),))[:2]
        check_rules(value, REVERSE_OVER_FORWARD)
        return slope, value

    with twice_differentiable(), ForwardMode():
        product, (_, value) = torch.func.grad_and_value(slope_and_value, has_aux=True)(tuple(x))
    product = list(product)
    gradient = None
    if with_gradient or not any(bool(part.any()) for part in product):
        # A zero product may come from a value that does not depend on x: reverse mode can tell.
        gradient = value_and_gradient(f, x)[1]
    return Product(product, value, gradient)


def reverse_over_reverse(
    f: LeafFunction, x: Leaves, v: Leaves, with_gradient: bool = False
) -> Product:
    """grad of g(x)'v with v held fixed. Value and gradient are free."""
    graph = HessianGraph(f, x)
    graph.check()
    custom = graph.custom_function
    return Product(graph.product(v, keep=False), graph.value, graph.gradient, custom)


ONE_SHOT_MODES: dict[str, Mode] = {
    "reverse-over-reverse": reverse_over_reverse,
    "forward-over-reverse": forward_over_reverse,
    "reverse-over-forward": reverse_over_forward,
    "finite-difference": central_difference,
    "forward-difference": forward_difference,
}
