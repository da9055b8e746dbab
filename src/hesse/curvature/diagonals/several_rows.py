# SPDX-License-Identifier: Apache-2.0
"""Squares where an example has several rows, which are added up before they are squared."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence

import torch
from torch import Tensor

from hesse.curvature.diagonals.squares import BlockRows, Squares
from hesse.curvature.kronecker.row_products import (
    OneHotSums,
    gradients,
    products,
    sum_of_squares,
)
from hesse.curvature.kronecker.rows import OneHot, Rows, Values
from hesse.tracing.uses import Use

# Entries of gradients of single examples at a time, which stay in a cache.
_CHUNK = 1 << 19


class OneHotRows(Squares):
    """A weight with one use, of which rows are chosen by an index."""

    _sums: OneHotSums | None = None
    _total: Tensor | float = 0.0

    def add(self, g: Values, weights: Sequence[float]) -> None:
        rows = self.rows
        (use,) = rows.uses
        if self._sums is None:
            hot = rows.of_a(use, g[use.g].shape[1:])
            assert isinstance(hot, OneHot)
            self._sums = OneHotSums.of(hot, rows.maps[0])
        for own, weight in zip(g[use.g], weights, strict=True):
            sums = self._sums.sums(rows.of_g(use, {use.g: own})[:, 0])
            self._total = self._total + weight * (sums * sums)

    def take(self) -> Tensor:
        assert self._sums is not None and isinstance(self._total, Tensor)
        total, self._total = self._sums.by_index(self._total), 0.0
        return total.T if self.rows.uses[0].g_is_left else total


class FewRows(Squares):
    """A weight with one use, of which an example has a few rows."""

    _arranged: Tensor | None = None
    _total: Tensor | None = None

    def add(self, g: Values, weights: Sequence[float]) -> None:
        (use,), (map_,) = self.rows.uses, self.rows.maps
        if self._arranged is None:
            own = self.rows.of_a_by_example(use, g[use.g].shape[1:], map_)
            assert isinstance(own, Tensor)
            self._arranged = own
        for rows, weight in zip(self.rows.by_example(use, g, map_), weights, strict=True):
            if self._total is None:
                examples, count, groups, size = rows.shape
                self._total = rows.new_zeros(count, count, examples, groups, size)
            for t in range(rows.shape[1]):
                self._total[t, : t + 1].addcmul_(
                    rows[:, t], rows[:, : t + 1].transpose(0, 1), value=weight
                )

    def take(self) -> Tensor:
        assert self._total is not None and self._arranged is not None
        whole, rows = None, self._arranged
        for t in range(rows.shape[1]):
            for s in range(t + 1):
                moment, pair = self._total[t, s], rows[:, t] * rows[:, s]
                pair = pair if s == t else 2.0 * pair
                sides = (moment, pair) if self.rows.uses[0].g_is_left else (pair, moment)
                part = products(*sides)
                whole = part if whole is None else whole.add_(part)
        self._total = None
        assert whole is not None
        return whole


class ManyRows(Squares):
    """A weight with several uses, or many rows of an example.

    Rows of several uses are like more rows of one. Those of all vectors lie side by side, so that
    one matrix product gives the gradients of an example for all of them.
    """

    _total: Tensor | None = None

    def __init__(self, rows: BlockRows) -> None:
        super().__init__(rows)
        self._alike = _alike(rows.uses)
        self._arranged: list[Rows] = []

    def add(self, g: Values, weights: Sequence[float]) -> None:
        maps = dict(zip(self.rows.uses, self.rows.maps, strict=True))
        sides = []
        for uses in self._alike:
            parts = [self.rows.by_example(use, g, maps[use]) for use in uses]
            sides.append(parts[0] if len(parts) == 1 else torch.cat(parts, 2))
        self._arranged = self._arranged or [
            _joined([self.rows.of_a_by_example(u, g[u.g].shape[1:], maps[u]) for u in uses])
            for uses in self._alike
        ]
        total: Tensor | None = None
        for part in self._chunks(sides):
            squares = sum_of_squares(self._gradients(sides, part))
            total = squares if total is None else total.add_(squares)
        assert total is not None
        for squares, weight in zip(total.unbind(1), weights, strict=True):
            self._total = (
                weight * squares if self._total is None else self._total.add_(squares, alpha=weight)
            )

    def _chunks(self, sides: Sequence[Tensor]) -> Iterator[slice]:
        """Examples whose rows and gradients fit into a cache, as equal numbers as can be."""
        vectors, examples = sides[0].shape[:2]
        entries = max(self.rows.block.n * vectors, *(side[:, 0].numel() for side in sides), 1)
        most = max(1, _CHUNK // entries)
        step = math.ceil(examples / math.ceil(examples / most))
        for first in range(0, examples, step):
            yield slice(first, first + step)

    def _gradients(self, sides: Sequence[Tensor], part: slice) -> Tensor:
        """(examples, groups, vectors, p, q), of some examples."""
        parts = []
        for (use, *_), side, rows in zip(self._alike, sides, self._arranged, strict=True):
            own, known = _side_by_side(side[:, part]), _of(rows, part)
            gradient = gradients(own, known, slice(None)).unflatten(2, (len(side), -1))
            parts.append(gradient if use.g_is_left else gradient.mT)
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)

    def take(self) -> Tensor:
        total, self._total = self._total, None
        assert total is not None
        return total


def _alike(uses: Sequence[Use]) -> list[list[Use]]:
    """Uses whose rows can be joined: dense ones, of which the same side depends on u."""
    lists: dict[Hashable, list[Use]] = {}
    for use in uses:
        key = use if use.rule == "embedding" else use.g_is_left
        lists.setdefault(key, []).append(use)
    return list(lists.values())


def _joined(rows: Sequence[Rows]) -> Rows:
    """Rows (examples, T, groups, d) of several uses as rows of one."""
    dense = [part for part in rows if isinstance(part, Tensor)]
    return rows[0] if len(rows) == 1 else torch.cat(dense, 1)


def _of(rows: Rows, part: slice) -> Rows:
    """The rows of some examples."""
    return rows[part] if isinstance(rows, Tensor) else OneHot(rows.index[part], rows.size)


def _side_by_side(rows: Tensor) -> Tensor:
    """(examples, T, groups, vectors * d), of rows (vectors, examples, T, groups, d)."""
    if len(rows) == 1:
        return rows[0]
    if rows.stride(2) == 1:  # as of convolutions: places stay next to one another
        return rows.permute(1, 3, 0, 4, 2).flatten(2, 3).permute(0, 3, 1, 2)
    return rows.permute(1, 2, 3, 0, 4).flatten(3)


class Sums(Squares):
    """A parameter whose gradient is a sum of rows of its own size."""

    _total: Tensor | None = None

    def add(self, g: Values, weights: Sequence[float]) -> None:
        squares = self.rows.sums(g).square().sum(1)
        total = squares.new_tensor(weights) @ squares
        self._total = total if self._total is None else self._total.add_(total)

    def take(self) -> Tensor:
        total, self._total = self._total, None
        assert total is not None
        return total
