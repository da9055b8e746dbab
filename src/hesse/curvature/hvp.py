# SPDX-License-Identifier: Apache-2.0
"""`hvp`: one Hessian-vector product, by any mode, for any tree of tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from hesse.ad.definition import Vectors
from hesse.ad.one_shot import ONE_SHOT_MODES
from hesse.ad.summands import as_sum, check_at
from hesse.ad.variables import Variables
from hesse.boundary import public
from hesse.curvature.hessian import HessianDefinition, HessianMode, hessian_operator
from hesse.curvature.point_product import fallback_modes, summand_points
from hesse.engine.assembly import Assembly, Shared
from hesse.engine.fallback import PointProduct
from hesse.engine.one_shot_sum import OneShotSum
from hesse.errors import check_choice
from hesse.result import Result
from hesse.vectors.space import Space, Tree


class _HVP(NamedTuple):
    product: Tree
    """H v, in the structure of v."""
    gradient: Tree
    """grad f(x), a tree like x."""
    value: Tensor
    """f(x), a scalar tensor."""


class HVP(Result, _HVP):
    """A product with the point it was taken at: (product, gradient, value)."""


@public("hesse.hvp(f, x, v, mode={mode})")
def hvp(
    f: Callable[[Any], Tensor],
    x: Tree,
    v: Tree,
    mode: HessianMode = "auto",
    *,
    value_and_gradient: bool = False,
) -> Any:
    r"""One product of the Hessian of f at x with v.

    $$ H v = \nabla^2 f(x)\, v = \frac{d}{dt} \nabla f(x + t v) \Big|_{t=0} $$

    Args:
        f: scalar function of one argument; a `Risk` is one.
        x: the point: a tensor, or dicts, lists, tuples and namedtuples of tensors (float32 or
            float64). An `nn.Parameter` with requires_grad=False is held fixed: its rows are zero.
        v: the direction: a tree like x, or one flat vector of length n.
        mode: "reverse-over-reverse", "forward-over-reverse", "reverse-over-forward",
            "finite-difference" (central), "forward-difference", or "auto": the first of these four
            exact and central modes that f allows. Another one than the first is said once, by a
            `FallbackWarning`.
        value_and_gradient: return `HVP(product, gradient, value)` instead of the product alone.

    Returns:
        H v, new tensors in the structure of v. The result carries no graph of its own.

    Cost:
        9, 9, 8, 6, 6 forward passes' worth of matrix products in the order above, where a gradient
        costs 3; O(n) memory and the residuals of f, of one batch at a time for a `Risk`. For
        several products at the same x use `hessian_operator`. With a custom `autograd.Function` in
        f, whose backward pass may be no program of torch's, two gradients more for a check.

    Raises:
        HesseError: v is not like x; f is not a scalar, does not depend on x or has no derivatives
            in this mode; NaN or Inf appears.
        RandomnessError: f draws random numbers, so that it has no single Hessian. What it draws
            from Python's or NumPy's generator is noticed where f is run more than once.

    References:
        Pearlmutter 1994, doi:10.1162/neco.1994.6.1.147; Nocedal & Wright 2006, sections 7.1, 8.1.

    >>> import torch
    >>> def f(p):                                      # H = [[2y, 2x], [2x, -sin y]]
    ...     return p["x"]**2 * p["y"] + torch.sin(p["y"])
    >>> point = {"x": torch.tensor(3.0), "y": torch.tensor(1.0)}
    >>> hvp(f, point, {"x": torch.tensor(1.0), "y": torch.tensor(0.0)})
    {'x': tensor(2.), 'y': tensor(6.)}
    """
    check_choice("mode", mode, ["auto", *ONE_SHOT_MODES])
    ranks = getattr(f, "ranks", None)
    space = Space.of(x, ranks=ranks)
    direction, leave = space.enter(v)
    if ranks is not None:
        H = hessian_operator(f, x, mode=mode)
        product = leave(H._matvec(direction))
        if not value_and_gradient:
            return product
        return HVP(product, leave(H.flat_gradient), H.value)
    check_at(f, x)
    definition = HessianDefinition()
    variables = Variables.of(space.copy(x), space)  # f may write to its argument
    points = partial(summand_points, definition, as_sum(f), variables)
    assemblies: dict[Vectors, Assembly] = {"variables": Shared(variables)}
    modes = fallback_modes(definition) if mode == "auto" else [mode]
    one_shot = OneShotSum(points, assemblies, ONE_SHOT_MODES)
    at = PointProduct(space, space, one_shot, None, modes, mode)
    product = leave(at.product(direction, with_gradient=value_and_gradient))
    if not value_and_gradient:
        return product
    return HVP(product, leave(at.gradient), at.value)
