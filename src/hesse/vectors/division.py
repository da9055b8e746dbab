# SPDX-License-Identifier: Apache-2.0
"""`Division`: how flat vectors lie in several processes, each of which has parts of the leaves.

The flat vector of a process is made of its parts of the leaves, one after the other. What is sent
from rank to rank has a *cell* for each leaf, of the size of the largest part, so that the parts of
all ranks are one table of equal rows. Where all parts are equal there is nothing in a cell but the
part.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hesse.ranks import Ranks
from hesse.vectors.cuts import Cut, RowCut


class Division(ABC):
    """Leaves that are cut, of which the process of a rank has its parts.

    A subclass says what stands for the leaves outside, and which processes share them.
    """

    rank: int
    cuts: tuple[Any, ...]
    """A `Cut` or a `RowCut` of each leaf."""

    @property
    @abstractmethod
    def ranks(self) -> int:
        """The number of processes."""

    @property
    def is_replicated(self) -> bool:
        """Whether other processes have the same parts."""
        return False

    @abstractmethod
    def some(self, chosen: Sequence[int]) -> Any:
        """That of some of the leaves."""

    @abstractmethod
    def is_leaf(self, v: Any, part: torch.Size) -> bool:
        """Whether v stands for a leaf of which this process has a part of such a shape."""

    @abstractmethod
    def parts(self, leaves: Sequence[tuple[str, Any]]) -> list[Tensor]:
        """The parts of this process; raises, with the labels of the leaves, if they are others."""

    @abstractmethod
    def whole(self, parts: Sequence[Tensor]) -> list[Any]:
        """What stands outside for leaves with these parts."""

    @abstractmethod
    def sharers(self, ranks: Ranks) -> Ranks:
        """Of all processes those that have the parts of one vector."""

    @abstractmethod
    def holders(self, ranks: Ranks) -> list[Ranks]:
        """Those that have the same part as this one, along each dimension."""

    @cached_property
    def shapes(self) -> tuple[torch.Size, ...]:
        """The shapes of the whole leaves."""
        return tuple(cut.shape for cut in self.cuts)

    @cached_property
    def n(self) -> int:
        """The number of entries of the whole leaves."""
        return sum(map(math.prod, self.shapes))

    @cached_property
    def width(self) -> int:
        """The number of entries of the largest part."""
        return sum(math.prod(cut.cell) for cut in self.cuts)

    # -- Rows of all ranks, and whole vectors ------------------------------------------------------

    def pack(self, rows: Tensor) -> Tensor:
        """The parts (k, size) of k vectors as a row of a table: (k * width,)."""
        if all(cut.is_even for cut in self.cuts):
            return rows.reshape(-1)
        packed, at = rows.new_zeros(len(rows), self.width), 0
        for cut, cell in self._cells(packed):
            part = cut.part(self.rank)
            here = rows[:, at : at + math.prod(part)].reshape(len(rows), *part)
            cell.narrow(cut.dim + 1, 0, part[cut.dim]).copy_(here)
            at += math.prod(part)
        return packed.view(-1)

    def assemble(self, table: Tensor, k: int) -> Tensor:
        """The whole vectors (k, n), from the rows (p, k * width) of all ranks."""
        whole = table.new_empty(k, self.n)
        cells = self._cells(table.unflatten(1, (k, self.width)))
        for (cut, cell), leaf in zip(cells, self._leaves(whole), strict=True):
            leaf.copy_(cut.joined(cell))
        return whole

    def _cells(self, packed: Tensor) -> Iterator[tuple[Cut | RowCut, Tensor]]:
        """Each leaf with its cells in the last dimension of a tensor, in the shape of a part."""
        sizes = [math.prod(cut.cell) for cut in self.cuts]
        for cut, cell in zip(self.cuts, packed.split(sizes, dim=-1), strict=True):
            yield cut, cell.view(*cell.shape[:-1], *cut.cell)

    def _leaves(self, whole: Tensor) -> list[Tensor]:
        """The leaves of whole vectors (k, n), shape (k, ...) each."""
        parts = whole.split([math.prod(shape) for shape in self.shapes], dim=1)
        pairs = zip(parts, self.shapes, strict=True)
        return [part.view(len(whole), *shape) for part, shape in pairs]

    # -- Where the entries of this rank lie in whole vectors ---------------------------------------

    def take(self, entries: Any) -> Tensor:
        """The entries of this rank, where entries(start, stop) gives those of a whole vector.

        Or its rows of a whole block, of which entries(start, stop) gives rows.
        """
        parts, start = [], 0
        for cut in self.cuts:
            size, inner = math.prod(cut.shape), math.prod(cut.shape[cut.dim + 1 :])
            first, rows = cut.first(self.rank), cut.part(self.rank)[cut.dim]
            outer = math.prod(cut.shape[: cut.dim])
            if outer == 1:  # neighbours
                begin = start + first * inner
                parts.append(entries(begin, begin + rows * inner))
            else:
                shape = outer, cut.shape[cut.dim], inner
                leaf = entries(start, start + size).unflatten(0, shape)
                parts.append(leaf.narrow(1, first, rows).flatten(0, 2))
            start += size
        return torch.cat(parts)
