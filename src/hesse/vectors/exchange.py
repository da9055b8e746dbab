# SPDX-License-Identifier: Apache-2.0
"""From the parts of sharded vectors to whole ones, and from sums of whole ones to parts.

These are the two messages of a product: steps that all ranks take together, and in which each says
whether it succeeded.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hesse.ranks import Ranks
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


def _both(space: Space) -> tuple[Ranks, Shards]:
    assert space.ranks is not None
    assert isinstance(space.shards, Shards)
    return space.ranks, space.shards
