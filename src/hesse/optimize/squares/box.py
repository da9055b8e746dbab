# SPDX-License-Identifier: Apache-2.0
"""Bounds on variables: projection onto the box, and which variables are held at a bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.errors import ArgumentError, is_number
from hesse.vectors.space import Space

# How near to a bound, relative to 1 + |x|, a variable counts as being at it.
_NEAR = 1e-12


@dataclass(frozen=True)
class Box:
    """lower <= x <= upper, flat vectors with infinities where there is no bound.

    >>> box = Box(torch.zeros(2), torch.tensor([1.0, torch.inf]))
    >>> box.project(torch.tensor([2.0, 2.0]))
    tensor([1., 2.])
    >>> box.active(torch.tensor([1.0, 2.0]))
    tensor([1, 0])
    """

    lower: Tensor
    upper: Tensor

    def project(self, x: Tensor) -> Tensor:
        """The nearest point in the box."""
        return torch.minimum(torch.maximum(x, self.lower), self.upper)

    def active(self, x: Tensor) -> Tensor:
        """-1 at a lower bound, 1 at an upper one, 0 between."""
        margin = _NEAR * (1 + x.abs())
        below, above = x <= self.lower + margin, x >= self.upper - margin
        return above.to(torch.int64) - below.to(torch.int64)

    def held(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Whether a variable is at a bound and the descent direction leads out of the box."""
        at = self.active(x)
        return ((at < 0) & (gradient > 0)) | ((at > 0) & (gradient < 0))


def make_box(bounds: Any, space: Space, x: Tensor) -> Box | None:
    """The box of the argument `bounds`, None for none; raises unless x is in it."""
    if bounds is None:
        return None
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise ArgumentError(
            expected="bounds to be a pair (lower, upper)",
            got=repr(bounds) if isinstance(bounds, (tuple, list)) else type(bounds).__name__,
            remedy="Give two numbers, or two trees like x0; None where there is no bound.",
        )
    lower = _side(bounds[0], space, -torch.inf, "bounds[0]")
    upper = _side(bounds[1], space, torch.inf, "bounds[1]")
    if not space.any(lower > -torch.inf) and not space.any(upper < torch.inf):
        return None
    if space.any(~(lower < upper)):  # NaN included
        raise ArgumentError(
            expected="lower < upper for every variable",
            got="bounds that leave a variable no room, or NaN",
            remedy="Take a variable that is fixed out of x0.",
        )
    if space.any((x < lower) | (x > upper)):
        raise ArgumentError(
            expected="x0 within the bounds",
            got="an entry outside of them",
            remedy="Start from x0.clamp(lower, upper).",
        )
    return Box(lower, upper)


def _side(bound: Any, space: Space, default: float, what: str) -> Tensor:
    """One bound as a flat vector."""
    if bound is None or is_number(bound):
        number = default if bound is None else float(bound)
        return torch.full_like(space.zeros(), number)
    return space.flatten(bound, what=what).clone()
