# SPDX-License-Identifier: Apache-2.0
"""Hessian-vector products by differences of gradients: for functions without second derivatives.

    central   H v ~ (g(x + h v) - g(x - h v)) / 2h     two gradients, error O(h^2)
    forward   H v ~ (g(x + h v) - g(x)) / h            one more gradient, error O(h)

The step balances truncation against rounding: h |v| = eps^(1/3) s for central and eps^(1/2) s for
forward differences (Nocedal & Wright 2006, section 8.1), eps the unit roundoff of the parameters
and s the size of x where v lives,

    s = 1 + |v * x| |v|_1 / |v|^2,

which is 1 + |x_i| for v = e_i and about 1 + |x| for a dense v. A product is linear in v, so h
scales with 1/|v|: v of norm 1e-6 and of norm 1e6 give the same relative accuracy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hesse.ad.hessian import value_and_gradient
from hesse.ad.product import Product
from hesse.ad.variables import LeafFunction, Leaves
from hesse.vectors.inner_products import dot


def central_difference(
    f: LeafFunction, x: Leaves, v: Leaves, with_gradient: bool = False, *, stretch: float = 1.0
) -> Product:
    """(g(x + h v) - g(x - h v)) / 2h; `stretch` makes the step longer."""
    value, gradient = value_and_gradient(f, x) if with_gradient else (None, None)
    h = stretch * step_size(x, v, power=1 / 3)
    if h == 0.0:
        return _zero_product(f, x)
    above, ahead = value_and_gradient(f, _moved(x, v, h))
    below, behind = value_and_gradient(f, _moved(x, v, -h))
    product = [(a - b) / (2 * h) for a, b in zip(ahead, behind, strict=True)]
    return Product(product, (above + below) / 2 if value is None else value, gradient)


def forward_difference(
    f: LeafFunction, x: Leaves, v: Leaves, with_gradient: bool = False
) -> Product:
    """(g(x + h v) - g(x)) / h. Value and gradient are free."""
    h = step_size(x, v, power=1 / 2)
    if h == 0.0:
        return _zero_product(f, x)
    value, here = value_and_gradient(f, x)
    _, ahead = value_and_gradient(f, _moved(x, v, h))
    product = [(a - b) / h for a, b in zip(ahead, here, strict=True)]
    return Product(product, value, here)


def step_size(x: Leaves, v: Leaves, power: float) -> float:
    """The step h of the module's formula; 0 for v = 0."""
    largest = max(float(part.abs().max()) if part.numel() else 0.0 for part in v)
    if largest == 0.0 or not math.isfinite(largest):
        return 0.0 if largest == 0.0 else math.nan
    v = [part / largest for part in v]  # so that no square over- or underflows
    v_norm2 = sum(dot(part.flatten(), part.flatten()) for part in v)
    v_norm1 = sum(float(part.abs().sum(dtype=torch.float64)) for part in v)
    vx_norm2 = sum(_norm2(part * leaf) for part, leaf in zip(v, x, strict=True))
    size = 1.0 + math.sqrt(vx_norm2) * v_norm1 / v_norm2
    eps = max(torch.finfo(leaf.dtype).eps for leaf in x)
    return eps**power * size / (math.sqrt(v_norm2) * largest)


def _norm2(part: Tensor) -> float:
    return dot(part.flatten(), part.flatten())


def _moved(x: Leaves, v: Leaves, h: float) -> list[Tensor]:
    return [leaf + h * part for leaf, part in zip(x, v, strict=True)]


def _zero_product(f: LeafFunction, x: Leaves) -> Product:
    value, gradient = value_and_gradient(f, x)
    return Product([torch.zeros_like(leaf) for leaf in x], value, gradient)
