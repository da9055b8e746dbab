# SPDX-License-Identifier: Apache-2.0
"""From the parts of sharded vectors to whole ones, and from sums of whole ones to parts.

These are the two messages of a product: steps that all ranks take together, and in which each says
whether it succeeded.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hesse.ranks import Ranks
from hesse.vectors.rows import transposed
from hesse.vectors.shards import Shards
from hesse.vectors.space import Space


def gather(space: Space, rows: Tensor) -> Tensor:
    """The whole vectors (k, n) of which this process has the parts (k, size): one all-gather."""
    ranks, shards = _both(space)
    return shards.assemble(ranks.gather_step(shards.pack(rows), space.sharers), len(rows))


def meet(space: Space) -> None:
    """Say which step this process takes, where there is nothing to gather for it."""
    _both(space)[0].gather_step(space.empty()[:0], space.sharers)


def sum_and_scatter(space: Space, k: int, compute: Callable[[], Tensor]) -> Tensor:
    """The parts (k, size) of the sum over processes of the whole vectors (k, n) of compute().

    One reduce-scatter, and an all-reduce of the parts over processes that have the same ones. An
    error of compute() in one process is one in all.
    """
    ranks, shards = _both(space)
    row = ranks.share_out(
        k * shards.width,
        space.empty(),
        lambda parts: shards.distribute(compute(), parts),
        space.sharers,
        space.holders,
    )
    return shards.unpack(row, k)


def whole_columns(space: Space, v: Tensor) -> Tensor:
    """A vector (n,) or a block (n, k) of which each process has its part, whole on all of them."""
    if space.shards is None:
        return v
    return _from_rows(gather(space, _as_rows(v)), v)


def summed(space: Space, columns: tuple[int, ...], compute: Callable[[], Tensor]) -> Tensor:
    """This process's part of the sum over processes of compute(), whole vectors (n, *columns).

    Of whole vectors one all-reduce; of shards a message that says the step, and a reduce-scatter.
    """
    ranks = space.ranks
    assert ranks is not None
    if space.shards is None:
        like = torch.empty(space.n, *columns, dtype=space.dtype, device=space.device)
        return ranks.sum_of(compute, like)
    meet(space)
    rows = sum_and_scatter(space, columns[0] if columns else 1, lambda: _as_rows(compute()))
    return rows.T if columns else rows[0]


def in_order(space: Space, total: int, first: int, rows: Callable[[], Tensor]) -> Tensor:
    """This process's part (total, size) of rows of which each process has some, from `first` on.

    Args:
        total: the number of rows of all processes.
        rows: gives those of this process, whole vectors (k, n).
    """

    def placed() -> Tensor:
        mine = rows()
        table = torch.zeros(total, space.n, dtype=space.dtype, device=space.device)
        table[first : first + len(mine)] = mine
        return table.T

    return summed(space, (total,), placed).T.contiguous()


def _as_rows(v: Tensor) -> Tensor:
    """A vector, or the columns of a block, as rows."""
    return v[None] if v.ndim == 1 else transposed(v)


def _from_rows(rows: Tensor, like: Tensor) -> Tensor:
    """The vector or the block that has these rows, as `like` is one."""
    return rows[0] if like.ndim == 1 else rows.T


def _both(space: Space) -> tuple[Ranks, Shards]:
    assert space.ranks is not None
    assert isinstance(space.shards, Shards)
    return space.ranks, space.shards
