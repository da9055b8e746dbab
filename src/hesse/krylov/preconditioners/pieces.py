# SPDX-License-Identifier: Apache-2.0
"""Where the blocks of block Jacobi lie in vectors, which may be sharded over processes."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.vectors.places import Places
from hesse.vectors.space import Space


class Pieces:
    """The leaves of a space, each cut into consecutive pieces of at most `size` entries.

    A process has the pieces in which it has entries. What it *sees* of a vector is its own part,
    the entries of the pieces that several processes have, which are sent, and a zero for no entry.

    Attributes:
        bounds: where each piece begins and ends in the whole vector, (count, 2).
        own: the numbers of the pieces of this process, (b,).
        index: where their entries lie in what it sees, (b, s); the last one is no entry.

    >>> pieces = Pieces(Space.of([torch.zeros(3), torch.zeros(1)]), 2)
    >>> pieces.bounds.tolist(), pieces.index.tolist()
    ([[0, 2], [2, 3], [3, 4]], [[0, 1], [2, 4], [3, 4]])
    """

    def __init__(self, space: Space, size: int) -> None:
        self._space, self.bounds = space, _bounds(space, size)
        starts, stops = self.bounds.unbind(1)
        here = space.positions  # ascending
        number = torch.searchsorted(starts.contiguous(), here, right=True) - 1
        self.own = number.unique_consecutive()
        self.longest = int((stops - starts).max())
        steps = torch.arange(self.longest, device=space.device)
        entries = starts[self.own][:, None] + steps
        is_entry = entries < stops[self.own][:, None]
        at = torch.searchsorted(here, entries)
        is_here = torch.cat([here, here.new_full((1,), -1)])[at] == entries
        self._shared = _of_all(space, entries[is_entry & ~is_here])
        self.num_seen = space.size + len(self._shared.index) + 1
        there = space.size + torch.searchsorted(self._shared.index, entries)
        self.index = torch.where(is_here, at, there)
        self.index[~is_entry] = self.num_seen - 1

    @property
    def lengths(self) -> Tensor:
        """The number of entries of each piece of this process, (b,)."""
        starts, stops = self.bounds[self.own].unbind(1)
        return stops - starts

    def seen(self, block: Tensor) -> Tensor:
        """What this process sees of a block (size, k): (num_seen, k)."""
        sent = [self._shared.take(block)] if len(self._shared.index) else []
        return torch.cat([block, *sent, block.new_zeros(1, block.shape[1])])

    def of(self, block: Tensor) -> Tensor:
        """The entries of a block (size, k) in each piece, zero for none: (b, s, k)."""
        return self.seen(block)[self.index]

    def joined(self, parts: Tensor) -> Tensor:
        """The block (size, k) that has these entries in each piece, (b, s, k)."""
        rows = parts.new_zeros(self.num_seen, parts.shape[2])
        rows[self.index] = parts
        return rows[: self._space.size]


def _bounds(space: Space, size: int) -> Tensor:
    """Where the pieces begin and end."""
    bounds, end = [], 0
    for leaf in space.whole_space.sizes:
        start, end = end, end + leaf
        starts = torch.arange(start, end, size, device=space.device)
        bounds.append(torch.stack([starts, (starts + size).clamp(max=end)], dim=1))
    return torch.cat(bounds)


def _of_all(space: Space, missing: Tensor) -> Places:
    """The entries that some process misses."""
    if space.shards is not None:
        missing = space.sharers.concatenated(missing).unique()
    return Places(space, missing)
