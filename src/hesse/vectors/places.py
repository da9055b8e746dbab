# SPDX-License-Identifier: Apache-2.0
"""Some entries of flat vectors: a slice, indices or, of sharded vectors, `Places`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hesse.vectors.space import Space


@dataclass(frozen=True, eq=False)
class Places:
    """Entries of the whole vector, whichever process has them.

    Each process has those that are taken. One all-reduce of them, of a block of its rows.

    Args:
        space: of vectors that are sharded.
        index: different places in the whole vector, (k,), the same in all processes.
    """

    space: Space
    index: Tensor

    @cached_property
    def _here(self) -> tuple[Tensor, Tensor]:
        """Which of them this process has, a mask (k,), and where they lie in its part."""
        own = self.space.positions  # ascending
        at = torch.searchsorted(own, self.index)
        found = torch.cat([own, own.new_full((1,), -1)])[at] == self.index
        return found, at[found]

    def take(self, v: Tensor) -> Tensor:
        """The entries (k,) of a vector, or the rows (k, ...) of a block."""
        here, at = self._here
        entries = v.new_zeros(len(self.index), *v.shape[1:])
        entries[here] = v[at]
        return self.space.total(entries)

    def embed(self, entries: Tensor) -> Tensor:
        """The vector, or the block, that has these entries, and zeros elsewhere."""
        here, at = self._here
        v = entries.new_zeros(self.space.size, *entries.shape[1:])
        v[at] = entries[here]
        return v


Where = slice | Tensor | Places


def taken(v: Tensor, where: Where) -> Tensor:
    """The entries of a vector, or the rows of a block, at these places.

    >>> taken(torch.tensor([1.0, 2.0, 3.0]), slice(1, 3))
    tensor([2., 3.])
    """
    return where.take(v) if isinstance(where, Places) else v[where]


def embedded(entries: Tensor, where: Where, space: Space) -> Tensor:
    """The vector of a space, or the block, that has entries at these places, zeros elsewhere.

    >>> embedded(torch.tensor([2.0]), torch.tensor([1]), Space.flat(3))
    tensor([0., 2., 0.])
    """
    if isinstance(where, Places):
        return where.embed(entries)
    v = entries.new_zeros(space.size, *entries.shape[1:])
    v[where] = entries
    return v
