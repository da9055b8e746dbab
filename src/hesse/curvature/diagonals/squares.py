# SPDX-License-Identifier: Apache-2.0
r"""Sums over vectors u and examples of the squared gradient of one parameter, by its rule.

$$ d_{ij} = \sum_u w_u \sum_n \Big(\sum_{t} l^u_{nti}\, r_{ntj}\Big)^2 $$

with rows l that depend on u and rows r that do not, t the places of example n.

| class | where | cost |
|---|---|---|
| `OneRow` | an example has one row | sum of l^2 over u first, then one matrix product |
| `OneHotRows` | indices, as of an embedding | sums of l of equal indices, squared |
| `FewRows` | few rows, many vectors | sums of l_t l_s over u first, a product for each t, s |
| `ManyRows` | other weights | the gradients of some examples at a time, for every u |
| `OneSum`, `Sums` | biases, norms | the same for one row of an example; sums of rows |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hesse.curvature.kronecker.examples import ExampleMap
from hesse.curvature.kronecker.layout import BlockLayout
from hesse.curvature.kronecker.row_products import (
    OneHotSums,
    arranged,
    gradients,
    products,
)
from hesse.curvature.kronecker.rows import OneHot, Rows, Values, gradient_rows, rows_of_a, rows_of_g
from hesse.tracing.uses import Use

# Entries of the sums of l_t l_s of a weight, and of gradients of single examples, of which few stay
# in a cache.
_PAIRS, _CHUNK = 1 << 23, 1 << 20

Maps = Mapping[Use, ExampleMap]


class Squares(ABC):
    """The sum for one parameter, or a part of one, on one batch.

    Args:
        block: its layout.
        a: the operands that do not depend on u.
        maps: the examples of the rows of its uses.
        dtype: of the sum.
    """

    def __init__(self, block: BlockLayout, a: Values, maps: Maps, dtype: torch.dtype) -> None:
        self.block, self._a, self._dtype = block, a, dtype
        self._maps = [maps[use] for use in block.uses]

    @property
    def one_row(self) -> int | None:
        """The operand whose squares, summed over vectors, are all that is needed."""
        return self.block.uses[0].g if isinstance(self, (OneRow, OneSum)) else None

    @abstractmethod
    def add(self, g: Values, weight: float) -> None:
        """Add the squares for a vector u, of which g are the operands."""

    @abstractmethod
    def take(self, squares: Values) -> Tensor:
        """The sum, one entry for each of the block; the next one starts from zero.

        `squares`: the sums over vectors of the squared operands g that `one_row` names.
        """

    def _rows_of_g(self, use: Use, g: Values) -> Tensor:
        return rows_of_g(use, g, self._a).to(self._dtype)

    def _rows_of_a(self, use: Use, g_shape: Sequence[int]) -> Rows:
        rows = rows_of_a(use, self._a, g_shape)
        return rows.to(self._dtype) if isinstance(rows, Tensor) else rows


class OneRow(Squares):
    """A weight with one use, of which an example has one row at most.

    Entries of its rows are entries of the operand, so that the operand is squared.
    """

    _rows: Rows | None = None

    def add(self, g: Values, weight: float) -> None:
        pass

    def take(self, squares: Values) -> Tensor:
        use = squared(self.block.uses[0])
        if self._rows is None:
            self._rows = self._rows_of_a(use, squares[use.g].shape)
        assert isinstance(self._rows, Tensor)
        left, right = self._rows_of_g(use, squares), self._rows * self._rows
        return products(left, right) if use.g_is_left else products(right, left)


class OneSum(Squares):
    """A bias with one use, of which an example has one row at most."""

    def add(self, g: Values, weight: float) -> None:
        pass

    def take(self, squares: Values) -> Tensor:
        use = squared(self.block.uses[0])
        return gradient_rows(use, squares, self._a).to(self._dtype).sum(0)


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

    def add(self, g: Values, numbers: Sequence[int], weights: Sequence[float]) -> None:
        """Add those of a block of vectors, the operands `numbers` of g."""
        self._views = self._views or _views({number: g[number][0] for number in numbers})
        for number in dict.fromkeys(owner for owner, _ in self._views.values()):
            for part, weight in zip(g[number].to(self._dtype), weights, strict=True):
                if number in self._sums:
                    self._sums[number].addcmul_(part, part, value=weight)
                else:
                    self._sums[number] = weight * (part * part)

    @property
    def values(self) -> Values:
        """The sums, by the number of the operand."""
        views = self._views.items()
        return {number: self._sums[owner].permute(dims) for number, (owner, dims) in views}


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


class OneHotRows(Squares):
    """A weight with one use, of which rows are chosen by an index."""

    _sums: OneHotSums | None = None
    _total: Tensor | float = 0.0

    def add(self, g: Values, weight: float) -> None:
        (use,) = self.block.uses
        if self._sums is None:
            hot = self._rows_of_a(use, g[use.g].shape)
            assert isinstance(hot, OneHot)
            self._sums = OneHotSums.of(hot, self._maps[0])
        sums = self._sums.sums(self._rows_of_g(use, g)[:, 0])
        self._total = self._total + weight * (sums * sums)

    def take(self, squares: Values) -> Tensor:
        assert self._sums is not None and isinstance(self._total, Tensor)
        total, self._total = self._sums.by_index(self._total), 0.0
        return total.T if self.block.uses[0].g_is_left else total


class FewRows(Squares):
    """A weight with one use, of which an example has a few rows."""

    _rows: Tensor | None = None
    _total: Tensor | None = None

    def add(self, g: Values, weight: float) -> None:
        (use,), (map_,) = self.block.uses, self._maps
        rows = map_.arrange(self._rows_of_g(use, g))
        if self._total is None:
            examples, count, groups, size = rows.shape
            self._total = rows.new_zeros(count, count, examples, groups, size)
        if self._rows is None:
            own = self._rows_of_a(use, g[use.g].shape)
            assert isinstance(own, Tensor)
            self._rows = map_.arrange(own)
        for t in range(rows.shape[1]):
            self._total[t, : t + 1].addcmul_(
                rows[:, t], rows[:, : t + 1].transpose(0, 1), value=weight
            )

    def take(self, squares: Values) -> Tensor:
        assert self._total is not None and self._rows is not None
        whole, rows = None, self._rows
        for t in range(rows.shape[1]):
            for s in range(t + 1):
                moment, pair = self._total[t, s], rows[:, t] * rows[:, s]
                pair = pair if s == t else 2.0 * pair
                sides = (moment, pair) if self.block.uses[0].g_is_left else (pair, moment)
                part = products(*sides)
                whole = part if whole is None else whole.add_(part)
        self._total = None
        assert whole is not None
        return whole


class ManyRows(Squares):
    """A weight with several uses, or many rows of an example."""

    _total: Tensor | None = None
    _arranged: list[Rows] | None = None

    def add(self, g: Values, weight: float) -> None:
        uses = self.block.uses
        if self._arranged is None:
            own = [self._rows_of_a(use, g[use.g].shape) for use in uses]
            self._arranged = [arranged(m, rows) for m, rows in zip(self._maps, own, strict=True)]
        if self._total is None:
            device = g[uses[0].g].device
            self._total = torch.zeros(self.block.shape, dtype=self._dtype, device=device)
        pairs: list[tuple[Rows, Rows]] = []
        for use, map_, own in zip(uses, self._maps, self._arranged, strict=True):
            rows = map_.arrange(self._rows_of_g(use, g))
            pairs.append((rows, own) if use.g_is_left else (own, rows))
        step = max(1, _CHUNK // self.block.n)
        for first in range(0, self._maps[0].examples, step):
            parts = [gradients(*pair, slice(first, first + step)) for pair in pairs]
            gradient = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
            self._total.add_(gradient.square_().sum(0), alpha=weight)

    def take(self, squares: Values) -> Tensor:
        total, self._total = self._total, None
        assert total is not None
        return total


class Sums(Squares):
    """A parameter whose gradient is a sum of rows of its own size."""

    _total: Tensor | float = 0.0

    def add(self, g: Values, weight: float) -> None:
        h: Tensor | float = 0.0
        for use, map_ in zip(self.block.uses, self._maps, strict=True):
            h = h + map_.sums(gradient_rows(use, g, self._a).to(self._dtype))
        assert isinstance(h, Tensor)
        self._total = self._total + weight * (h * h).sum(0)

    def take(self, squares: Values) -> Tensor:
        total, self._total = self._total, 0.0
        assert isinstance(total, Tensor)
        return total


def squares_of(
    block: BlockLayout, a: Values, g: Values, maps: Maps, dtype: torch.dtype, vectors: int
) -> Squares:
    """The way that takes the fewest operations for so many vectors, of one of which g are."""
    if block.kind == "rows":
        (use, *others) = block.uses
        is_one = not others and use.rule in ("sum", "channel sum", "own gradient")
        is_one = is_one and maps[use].most_rows(len(gradient_rows(use, g, a))) == 1
        return (OneSum if is_one else Sums)(block, a, maps, dtype)
    chosen: type[Squares] = ManyRows
    if len(block.uses) == 1:
        (use,) = block.uses
        rows = rows_of_g(use, g, a)
        count = maps[use].most_rows(len(rows))
        if use.rule == "embedding":
            chosen = OneHotRows
        elif count == 1:
            chosen = OneRow
        elif _are_few(count, rows.numel(), vectors):
            chosen = FewRows
    return chosen(block, a, maps, dtype)


def _are_few(count: int, entries: int, vectors: int) -> bool:
    """Whether a matrix product for each pair of rows is less than one for each row and vector."""
    return (count + 1) / 2 < vectors and count * entries <= _PAIRS
