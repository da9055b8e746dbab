# SPDX-License-Identifier: Apache-2.0
"""`Box`: bounds on variables, and what they leave of points and gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from hesse.errors import ArgumentError, is_number, kind_of
from hesse.operators.algebra import LinearOperator
from hesse.vectors.entries import entries
from hesse.vectors.space import Space


@dataclass(frozen=True)
class Box:
    """lower <= x <= upper, entry by entry; flat vectors, infinite where there is no bound.

    >>> box = Box(torch.zeros(2), torch.tensor([1.0, math.inf]))
    >>> box.project(torch.tensor([2.0, -3.0]))
    tensor([1., 0.])
    >>> box.free(torch.tensor([1.0, 0.0]), torch.tensor([-1.0, -1.0]))
    tensor([False,  True])
    """

    lower: Tensor
    upper: Tensor

    @staticmethod
    def of(bounds: Any, space: Space) -> Box:
        """From a pair (lower, upper) of numbers, tensors, trees or None; or SciPy's spellings.

        These are `Bounds`, and for a flat x a list of a pair (low, high) for every variable.

        Raises:
            ArgumentError: no such pair; NaN; a lower bound above the upper one.
        """
        if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
            bounds = tuple(map(_of_scipy, (bounds.lb, bounds.ub)))
        elif _is_pairs(bounds) and space.template is None:
            bounds = tuple(zip(*bounds, strict=True))
        if not isinstance(bounds, (tuple, list)) or len(bounds) != 2 or _is_pairs(bounds):
            raise ArgumentError(
                expected="bounds to be a pair (lower, upper), or scipy.optimize.Bounds",
                got="a list of pairs for a tree" if _is_pairs(bounds) else kind_of(bounds),
                remedy="Give bounds=(0.0, None), for instance; each of the two may be a number, a "
                "tensor or tree like x0, or None. Pairs (low, high) are of the variables of a flat "
                "x0.",
            )
        lower = _flat(bounds[0], -math.inf, space, "lower bound")
        upper = _flat(bounds[1], math.inf, space, "upper bound")
        above = ~(lower <= upper)
        if space.any(above):
            raise ArgumentError(
                expected="lower bounds that are not above the upper ones",
                got=_first_above(lower, upper, above.nonzero()[:, 0].tolist()),
                remedy="Exchange them; equal bounds hold a variable fixed.",
            )
        return Box(lower, upper)

    def project(self, x: Tensor) -> Tensor:
        """The nearest point within the bounds."""
        return torch.clamp(x, self.lower, self.upper)

    def free(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Which entries of x may move downhill: a mask."""
        held = (x <= self.lower) & (gradient > 0.0) | (x >= self.upper) & (gradient < 0.0)
        return ~(held | (self.lower >= self.upper))

    def held(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Which entries of x a bound keeps from moving downhill: a mask."""
        return ~self.free(x, gradient)

    def along(self, x: Tensor, p: Tensor) -> Tensor:
        """The entries of p that do not push x out of its bounds: the way of the projection.

        >>> box = Box(torch.zeros(2), torch.ones(2))
        >>> box.along(torch.tensor([1.0, 0.0]), torch.tensor([3.0, 4.0]))
        tensor([0., 4.])
        """
        return p * self.free(x, -p)

    def active(self, x: Tensor) -> Tensor:
        """-1 at a lower bound, 1 at an upper one, 0 elsewhere, as in SciPy's `active_mask`."""
        return (x >= self.upper).long() - (x <= self.lower).long()

    def inside(self, x: Tensor) -> Tensor:
        """Which entries of x are strictly within their bounds: a mask."""
        return (x > self.lower) & (x < self.upper)

    def first_bound(self, x: Tensor, p: Tensor, space: Space) -> float:
        """The largest t with x + t p within the bounds, for vectors of a space."""
        room = torch.where(p > 0.0, self.upper - x, self.lower - x) / p
        return space.extremes(torch.where(p == 0.0, math.inf, room))[0]


class Masked(LinearOperator):
    """D A D for a diagonal D of zeros and ones: A on the variables that are free."""

    def __init__(self, A: LinearOperator, mask: Tensor) -> None:
        super().__init__(A.domain, symmetric=A.symmetric)
        self._A, self._mask = A, mask

    def _matvec(self, v: Tensor) -> Tensor:
        return self._mask * self._A._matvec(self._mask * v)


def _flat(bound: Any, default: float, space: Space, what: str) -> Tensor:
    """One of the two bounds as a flat vector."""
    vector = entries(bound, space, what, missing=default)
    if space.any(vector != vector):
        raise ArgumentError(
            expected=f"numbers as {what}",
            got="NaN",
            remedy="Give None, or infinity, where there is no bound.",
        )
    return vector


def _first_above(lower: Tensor, upper: Tensor, places: list[int]) -> str:
    """The first of the places, in words; of sharded vectors there may be none here."""
    if not places:
        return "others in another process"
    i = places[0]
    return f"{float(lower[i]):.6g} and {float(upper[i]):.6g} for entry {i}"


def _of_scipy(bound: Any) -> Any:
    """An array of its own, since SciPy's may share memory; one number for all is an array of it."""
    array = numpy.array(bound)
    return array if array.size > 1 else float(array.item())


def _is_end(value: Any) -> bool:
    """Whether this is a bound of one variable."""
    return value is None or is_number(value)


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(_is_end, value))


def _is_pairs(bounds: Any) -> bool:
    """Whether these are SciPy's pairs (low, high) of variables, not two vectors of bounds."""
    return isinstance(bounds, list) and bool(bounds) and all(map(_is_pair, bounds))
