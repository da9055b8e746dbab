# SPDX-License-Identifier: Apache-2.0
"""Squares where an example has one row: sums over vectors first, then one matrix product."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hesse.curvature.diagonals.squares import OfSquaredOperand
from hesse.curvature.kronecker.row_products import add_products
from hesse.curvature.kronecker.rows import Values, gradient_rows
from hesse.tracing.uses import Use


class OneRow(OfSquaredOperand):
    """A weight with one use, of which an example has one row at most.

    Entries of its rows are entries of the operand, so that the operand is squared.
    """

    def add(self, squares: Values, coefficient: float, totals: Sequence[Tensor]) -> None:
        use, rows = squared(self.rows.uses[0]), self.rows
        own = rows.of_a(use, squares[use.g].shape)
        assert isinstance(own, Tensor)
        given, own = rows.of_g(use, squares), own * own
        left, right = (given, own) if use.g_is_left else (own, given)
        add_products(totals[0], left, right, coefficient)
        if rows.block.has_bias:
            totals[1].add_(given.sum(0).reshape(-1), alpha=coefficient)


class OneSum(OfSquaredOperand):
    """A bias with one use, of which an example has one row at most, and no weight in its block."""

    def add(self, squares: Values, coefficient: float, totals: Sequence[Tensor]) -> None:
        use, rows = squared(self.rows.uses[0]), self.rows
        sums = gradient_rows(use, squares, rows.a).to(rows.dtype).sum(0)
        totals[0].add_(sums.reshape(-1), alpha=coefficient)


class SquaredOperands:
    """Sums over vectors of the squares of operands.

    A weight and its bias have the same operand, transposed or not: it is squared once.

    Args:
        dtype: of the sums.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._sums: dict[int, Tensor] = {}
        self._views: dict[int, tuple[int, list[int]]] = {}
        self._owners: list[int] = []

    def add(self, g: Values, numbers: Sequence[int], weights: Sequence[float]) -> None:
        """Add those of a block of vectors, the operands `numbers` of g."""
        if not self._views:
            self._views = _views({number: g[number][0] for number in numbers})
            self._owners = list(dict.fromkeys(owner for owner, _ in self._views.values()))
        for number in self._owners:
            parts = g[number].to(self._dtype).unbind()
            for part, weight in zip(parts, weights, strict=True):
                if number in self._sums:
                    self._sums[number].addcmul_(part, part, value=weight)
                else:
                    self._sums[number] = part.square().mul_(weight)

    def take(self) -> Values:
        """The sums, by the number of the operand; the next ones start from zero."""
        sums, self._sums = self._sums, {}
        return {number: sums[own].permute(dims) for number, (own, dims) in self._views.items()}


def _views(operands: Values) -> dict[int, tuple[int, list[int]]]:
    """For each operand one of the same memory, and how its dimensions are permuted."""
    owners: dict[Hashable, tuple[int, list[int]]] = {}
    views = {}
    for number, operand in operands.items():
        order = sorted(range(operand.ndim), key=lambda dim: -operand.stride(dim))
        inner = operand.permute(order)
        memory = inner.data_ptr(), inner.shape, inner.stride(), inner.dtype
        owner, owners_order = owners.setdefault(memory, (number, order))
        dims = [owners_order[order.index(dim)] for dim in range(operand.ndim)]
        views[number] = owner, dims
    return views


def squared(use: Use) -> Use:
    """The use whose rows are the squares of this one's if its operand is squared."""
    return replace(use, scale=use.scale**2, multipliers=use.multipliers * 2)
