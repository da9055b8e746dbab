# SPDX-License-Identifier: Apache-2.0
"""A point near the parameters, at which the tests of a model and a loss are made.

At the parameters themselves a term may be zero that is not zero elsewhere, and the losses of all
examples may be equal: so it is at the start of a model whose last layer is zero. A test there is
blind to the term and to the weights of the examples, and its verdict holds for every later point.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from hesse.vectors.space import Space, Tree

T = TypeVar("T")


def evaluated_nearby(
    evaluate: Callable[[Tree], T], params: Tree, is_finite: Callable[[T], bool]
) -> tuple[Tree, T]:
    """A point near the parameters and what `evaluate` gives there.

    The point is the parameters themselves where `evaluate` fails nearby or is not finite: near a
    factor of a covariance may be no factor of one.

    >>> params = {"scale": torch.tensor([2.0])}
    >>> point, value = evaluated_nearby(lambda p: float(p["scale"]), params, lambda v: v != 2.0)
    >>> abs(value - 2.0) < 0.5, point["scale"].item() == value
    (True, True)
    >>> evaluated_nearby(lambda p: float(p["scale"]), params, lambda v: v == 2.0)
    ({'scale': tensor([2.])}, 2.0)
    """
    near = _near(params)
    try:
        value = evaluate(near)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever the model says outside its domain
        return params, evaluate(params)
    return (near, value) if is_finite(value) else (params, evaluate(params))


def _near(params: Tree) -> Tree:
    """The parameters with noise, always the same."""
    space, generator = Space.of(params), torch.Generator().manual_seed(0)
    return space.build([_with_noise(leaf.detach(), generator) for leaf in space.leaves(params)])


def _with_noise(leaf: Tensor, generator: torch.Generator) -> Tensor:
    """The leaf, changed by as much as weights are at a usual start if it is smaller than these.

    Other numbers, which may have to stay above zero, change by some hundredths of themselves.
    """
    noise = torch.randn(leaf.shape, generator=generator).clamp_(-4.0, 4.0).to(leaf)
    usual = max(1, math.prod(leaf.shape[1:])) ** -0.5  # of so many inputs of a unit
    typical = float(leaf.double().square().mean().sqrt()) if leaf.numel() else 0.0
    if typical == 0.0 or (leaf.ndim > 1 and typical < usual):
        return leaf + 0.5 * usual * noise
    return leaf + 0.05 * torch.where(leaf == 0, typical, leaf.abs()) * noise
