# SPDX-License-Identifier: Apache-2.0
"""Operators whose products are so large or so small that squares of them over- or underflow.

Inner products and norms square what they sum, and |A v| near 1e-200 has a square of zero in
float64. Such a problem is solved for s A with a power of two s, which changes no bit of the
mantissas. That it must be is seen at the first product, and costs that product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from hesse.operators.algebra import LinearOperator
from hesse.operators.computed_diagonal import combined

ResultT = TypeVar("ResultT")


class ExtremeProducts(Exception):
    """The first product with A was extreme; `scale` is the power of two to multiply A by."""

    def __init__(self, A: LinearOperator, scale: float) -> None:
        super().__init__(A, scale)
        self.A, self.scale = A, scale
        half = round(math.log2(scale)) // 2
        self.first, self.second = 2.0**half, scale / 2.0**half


def usual_scale(size: float, dtype: torch.dtype) -> float:
    """A power of two that brings this size close to 1, if it is extreme for the dtype; else 1.

    >>> usual_scale(8.0, torch.float32), usual_scale(2.0**90, torch.float32) == 2.0**-90
    (1.0, True)
    """
    limit = torch.finfo(dtype).tiny ** 0.45
    if limit <= size <= 1 / limit or size == 0.0 or not math.isfinite(size):
        return 1.0
    return scale_to_one(size)


def scale_to_one(size: float, most: int = 1022) -> float:
    """The power of two that brings a size closest to 1, of those from 2^-most to 2^most.

    >>> scale_to_one(6.0), scale_to_one(1e-320) == 2.0**1022
    (0.125, True)
    """
    return 2.0 ** max(min(-round(math.log2(size)), most), -most)


def with_usual_products(
    A: LinearOperator, compute: Callable[[LinearOperator, float, int], ResultT]
) -> ResultT:
    """compute(A, 1, 0); or compute(s A, s, 1) if the first product, which is lost, is extreme."""
    try:
        return compute(_Watched(A), 1.0, 0)
    except ExtremeProducts as extreme:
        if extreme.A is not A:
            raise
        return compute(_Scaled(A, extreme.scale), extreme.scale, 1)


class _Wrapped(LinearOperator):
    """An operator of the spaces of A."""

    def __init__(self, A: LinearOperator) -> None:
        super().__init__(A.domain, A.codomain, symmetric=A.symmetric)
        self.A = A

    def _expression(self) -> str:
        return self.A._expression()


class _Scaled(_Wrapped):
    """s A by products s_2 A (s_1 v), s = s_1 s_2, none of whose factors over- or underflows."""

    def __init__(self, A: LinearOperator, scale: float) -> None:
        super().__init__(A)
        self.scale = scale
        half = round(math.log2(scale)) // 2
        self.first, self.second = 2.0**half, scale / 2.0**half

    def _matvec(self, v: Tensor) -> Tensor:
        return self.second * self.A._matvec(self.first * v)

    def _rmatvec(self, u: Tensor) -> Tensor:
        return self.second * self.A._rmatvec(self.first * u)

    def _matmat(self, block: Tensor) -> Tensor:
        return self.second * self.A._matmat(self.first * block)

    def _rmatmat(self, block: Tensor) -> Tensor:
        return self.second * self.A._rmatmat(self.first * block)

    def _inverse(self) -> LinearOperator | None:
        inverse = self.A._inverse()
        return None if inverse is None else inverse / self.scale

    def _diagonal(self) -> Tensor | None:
        diagonal = self.A._diagonal()
        return None if diagonal is None else self.scale * diagonal

    def _computed_diagonal(self) -> Any:
        return combined([self.A], lambda diagonal: self.scale * diagonal)


class _Watched(_Wrapped):
    """A, which raises `ExtremeProducts` at its first product if that is extreme."""

    def __init__(self, A: LinearOperator) -> None:
        super().__init__(A)
        self.is_seen = False

    def _see(self, v: Tensor, w: Tensor) -> Tensor:
        if not self.is_seen:
            (given,), (found,) = self.domain.largest(v), self.codomain.largest(w)
            self.is_seen = found > 0.0
            scale = usual_scale(found / given, self.domain.dtype) if given else 1.0
            if scale != 1.0:
                raise ExtremeProducts(self.A, scale)
        return w

    def _matvec(self, v: Tensor) -> Tensor:
        return self._see(v, self.A._matvec(v))

    def _rmatvec(self, u: Tensor) -> Tensor:
        return self._see(u, self.A._rmatvec(u))

    def _matmat(self, block: Tensor) -> Tensor:
        return self._see(block, self.A._matmat(block))

    def _rmatmat(self, block: Tensor) -> Tensor:
        return self._see(block, self.A._rmatmat(block))

    def _curvature(self, v: Tensor) -> float:
        return self.A._curvature(v)

    def _inverse(self) -> LinearOperator | None:
        return self.A._inverse()

    def _diagonal(self) -> Tensor | None:
        return self.A._diagonal()

    def _computed_diagonal(self) -> Any:
        return self.A._computed_diagonal()

    def _plus_diagonal(self, D: Any) -> Any:
        return self.A._plus_diagonal(D)

    def _split_shift(self) -> tuple[Any, float]:
        return self.A._split_shift()

    @property
    def is_diagonal(self) -> bool:
        return self.A.is_diagonal
