# SPDX-License-Identifier: Apache-2.0
"""Squares where an example has several rows, which are added up before they are squared."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hesse.curvature.diagonals.squares import Squares, each_vector
from hesse.curvature.kronecker.row_products import OneHotSums, arranged, gradients, products
from hesse.curvature.kronecker.rows import OneHot, Rows, Values, gradient_sums

# Entries of gradients of single examples at a time, which stay in a cache.
_CHUNK = 1 << 18


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
        for own, weight in each_vector(g, weights):
            sums = self._sums.sums(rows.of_g(use, own)[:, 0])
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
            own = self.rows.of_a(use, g[use.g].shape[1:])
            assert isinstance(own, Tensor)
            self._arranged = map_.arrange(own)
        for own, weight in each_vector(g, weights):
            rows = self.rows.by_example(use, own, map_)
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

    The rows of all vectors lie side by side, so that one matrix product gives the gradients of an
    example for all of them.
    """

    _total: Tensor | None = None
    _arranged: list[Rows] | None = None

    def add(self, g: Values, weights: Sequence[float]) -> None:
        uses, maps = self.rows.uses, self.rows.maps
        if self._arranged is None:
            own = [self.rows.of_a(use, g[use.g].shape[1:]) for use in uses]
            self._arranged = [arranged(m, rows) for m, rows in zip(maps, own, strict=True)]
        vectors = [values for values, _ in each_vector(g, weights)]
        sides = [
            _side_by_side([self.rows.by_example(use, values, map_) for values in vectors])
            for use, map_ in zip(uses, maps, strict=True)
        ]
        weighted = sides[0].new_tensor(weights)
        step = max(1, _CHUNK // (self.rows.block.n * len(weights)))
        for first in range(0, maps[0].examples, step):
            gradient = self._gradients(sides, slice(first, first + step), len(weights))
            squares = torch.einsum("guxy,u->gxy", gradient.square_().sum(0), weighted)
            self._total = squares if self._total is None else self._total.add_(squares)

    def _gradients(self, sides: Sequence[Tensor], part: slice, vectors: int) -> Tensor:
        """(examples, groups, vectors, p, q), of some examples."""
        assert self._arranged is not None
        parts = []
        for use, side, own in zip(self.rows.uses, sides, self._arranged, strict=True):
            gradient = gradients(side, own, part).unflatten(2, (vectors, -1))
            parts.append(gradient if use.g_is_left else gradient.mT)
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)

    def take(self) -> Tensor:
        total, self._total = self._total, None
        assert total is not None
        return total


def _side_by_side(rows: Sequence[Tensor]) -> Tensor:
    """(examples, T, groups, vectors * d), of rows (examples, T, groups, d) of each vector."""
    if len(rows) == 1:
        return rows[0]
    if rows[0].stride(1) == 1:  # as of convolutions: places stay next to one another
        return (
            torch.stack([part.permute(0, 2, 3, 1) for part in rows], 2)
            .flatten(2, 3)
            .permute(0, 3, 1, 2)
        )
    return torch.stack(list(rows), 3).flatten(3)


class Sums(Squares):
    """A parameter whose gradient is a sum of rows of its own size."""

    _total: Tensor | float = 0.0

    def add(self, g: Values, weights: Sequence[float]) -> None:
        rows = self.rows
        for own, weight in each_vector(g, weights):
            h: Tensor | float = 0.0
            for use, map_ in zip(rows.uses, rows.maps, strict=True):
                h = h + gradient_sums(use, own, rows.a, map_).to(rows.dtype)
            assert isinstance(h, Tensor)
            self._total = self._total + weight * (h * h).sum(0)

    def take(self) -> Tensor:
        total, self._total = self._total, 0.0
        assert isinstance(total, Tensor)
        return total
