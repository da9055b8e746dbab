# SPDX-License-Identifier: Apache-2.0
"""`Cut` and `RowCut`: one leaf, and the rows of it that each process has."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor


class _Cells:
    """What follows from the first rows of all parts. The *cell* is of the size of the largest."""

    shape: torch.Size
    dim: int

    @property
    def rows(self) -> int:
        """Rows of the largest part."""
        raise NotImplementedError

    def first(self, rank: int) -> int:
        """The first row of the part of a rank."""
        raise NotImplementedError

    @property
    def cell(self) -> torch.Size:
        """The shape of the largest part."""
        return self._with(self.rows)

    def part(self, rank: int) -> torch.Size:
        """The shape of the part of a rank."""
        return self._with(self.first(rank + 1) - self.first(rank))

    def _with(self, rows: int) -> torch.Size:
        return torch.Size([*self.shape[: self.dim], rows, *self.shape[self.dim + 1 :]])


@dataclass(frozen=True)
class Cut(_Cells):
    """A leaf that `size` processes share along a dimension, as `torch.chunk` cuts it.

    >>> cut = Cut(torch.Size([5, 2]), 0, 3)
    >>> cut.cell, [tuple(cut.part(rank)) for rank in range(3)]
    (torch.Size([2, 2]), [(2, 2), (2, 2), (1, 2)])
    """

    shape: torch.Size
    dim: int
    size: int

    @property
    def rows(self) -> int:
        """Rows of the largest part."""
        return -(-self.shape[self.dim] // self.size)

    @property
    def is_even(self) -> bool:
        """Whether all parts are equal."""
        return self.rows * self.size == self.shape[self.dim]

    def first(self, rank: int) -> int:
        """The first row of the part of a rank."""
        return min(rank * self.rows, self.shape[self.dim])

    def joined(self, cells: Tensor) -> Tensor:
        """The leaves (k, ...) whose cells all ranks gave, (ranks, k, ...)."""
        dim = self.dim + 1
        rows = cells.movedim(0, dim).flatten(dim, dim + 1)
        return rows.narrow(dim, 0, self.shape[self.dim])


@dataclass(frozen=True)
class RowCut(_Cells):
    """A leaf of which each process has as many rows as it says.

    Args:
        counts: the rows of each process.
        row: the shape of a row.

    >>> cut = RowCut((3, 0, 2), torch.Size([4]))
    >>> cut.shape, cut.cell, [cut.first(rank) for rank in range(3)]
    (torch.Size([5, 4]), torch.Size([3, 4]), [0, 3, 3])
    """

    counts: tuple[int, ...]
    row: torch.Size

    dim = 0

    @property
    def shape(self) -> torch.Size:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The shape of the whole leaf."""
        return torch.Size([sum(self.counts), *self.row])

    @property
    def rows(self) -> int:
        """Rows of the largest part."""
        return max(self.counts)

    @property
    def is_even(self) -> bool:
        """Whether all parts are equal."""
        return len(set(self.counts)) == 1

    @cached_property
    def _ends(self) -> list[int]:
        return [0, *accumulate(self.counts)]

    def first(self, rank: int) -> int:
        """The first row of the part of a rank."""
        return self._ends[rank]

    def joined(self, cells: Tensor) -> Tensor:
        """The leaves (k, ...) whose cells all ranks gave, (ranks, k, ...)."""
        parts = [cell[:, :count] for cell, count in zip(cells, self.counts, strict=True)]
        return torch.cat(parts, dim=1)
