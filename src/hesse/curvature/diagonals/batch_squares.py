# SPDX-License-Identifier: Apache-2.0
"""`BatchSquares`: the sums of squares of all blocks of a batch that have a rule."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hesse.curvature.diagonals.several_rows import FewRows, ManyRows, OneHotRows, Sums
from hesse.curvature.diagonals.single_rows import OneRow, OneSum, SquaredOperands
from hesse.curvature.diagonals.squares import BlockRows, OfSquaredOperand, Squares
from hesse.curvature.diagonals.visits import Visit
from hesse.curvature.kronecker.rows import Values, gradient_rows, rows_of_g
from hesse.operators.placed_blocks import Place, Range

# Entries of the sums of l_t l_s of a weight.
_PAIRS = 1 << 23

Part = Squares | OfSquaredOperand


class BatchSquares:
    """The sums for a batch at a point.

    Args:
        visit: the batch.
        dtype: of the sums.
        vectors: how many will be added.
    """

    def __init__(self, visit: Visit, dtype: torch.dtype, vectors: int) -> None:
        self.visit, self._dtype, self._vectors = visit, dtype, vectors
        self._squares: list[Squares] = []
        self._of_squares: list[OfSquaredOperand] = []
        self._operands = SquaredOperands(dtype)

    def add(self, g: Values, weights: Sequence[float]) -> None:
        """Add the squares for some vectors u, of which g are the operands."""
        if not self._squares and not self._of_squares:
            self._choose({number: block[0] for number, block in g.items()})
        self._operands.add(g, [part.operand for part in self._of_squares], weights)
        for part in self._squares:
            part.add(g, weights)

    def take(self, total: Tensor, coefficient: float) -> None:
        """Add the sums, times a coefficient, to a flat vector; the next ones start from zero."""
        operands = self._operands.take()
        for part in self._of_squares:
            places = [block.place for block in part.rows.block.parts or (part.rows.block,)]
            totals = [place.take(total) for place in places]
            part.add(operands, coefficient, totals)
            for place, entries in zip(places, totals, strict=True):
                _put(place, entries, total)
        for part in self._squares:
            place = part.rows.block.place
            entries = place.take(total).add_(part.take().reshape(-1), alpha=coefficient)
            _put(place, entries, total)

    def _choose(self, g: Values) -> None:
        """The way of every parameter, from the operands of one vector."""
        for block in self.visit.covered:
            maps = [self.visit.maps[use] for use in block.uses]
            assert self.visit.point is not None
            part = chosen(BlockRows(block, self.visit.point.a, maps, self._dtype), g, self._vectors)
            if isinstance(part, Squares):
                self._squares.append(part)
            else:
                self._of_squares.append(part)


def _put(place: Place, entries: Tensor, total: Tensor) -> None:
    """Put back what was taken of the total, if that was a copy."""
    if not isinstance(place, Range):
        place.put(total, entries)


def chosen(rows: BlockRows, g: Values, vectors: int) -> Part:
    """The way that takes the fewest operations for so many vectors, of one of which g are."""
    (use, *others), map_ = rows.uses, rows.maps[0]
    if rows.block.kind == "rows":
        is_one = not others and use.rule in ("sum", "channel sum", "own gradient")
        is_one = is_one and map_.most_rows(len(gradient_rows(use, g, rows.a))) == 1
        return (OneSum if is_one else Sums)(rows)
    if others:
        return ManyRows(rows)
    if use.rule == "embedding":
        return OneHotRows(rows)
    if use.rule == "convolution" and map_.is_of_images(g[use.g].shape):  # without a copy of rows
        count, entries = math.prod(g[use.g].shape[2:]), g[use.g].numel()
    else:
        own = rows_of_g(use, g, rows.a)
        count, entries = map_.most_rows(len(own)), own.numel()
    if count == 1:
        return OneRow(rows)
    return (FewRows if _are_few(count, entries, vectors) else ManyRows)(rows)


def _are_few(count: int, entries: int, vectors: int) -> bool:
    """Whether a matrix product for each pair of rows is less than one for each row and vector."""
    return (count + 1) / 2 < vectors and count * entries <= _PAIRS
