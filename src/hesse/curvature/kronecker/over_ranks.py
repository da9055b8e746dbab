# SPDX-License-Identifier: Apache-2.0
"""Factors of data that several processes share: their moments are added up, by one all-reduce.

A process without data learns from another one which blocks there are.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hesse.curvature.kronecker.layout import BlockLayout, forms
from hesse.curvature.kronecker.moments import KroneckerMoments, RowMoments, ScalarMoments
from hesse.ranks import RankError, Ranks

Moments = KroneckerMoments | RowMoments | ScalarMoments


def known_to_all(ranks: Ranks, has_data: bool, what: Any) -> Any:
    """What a process with data knows, also in those that have none; itself where all have data."""
    rows = [bool(row[0]) for row in ranks.gather(has_data)]
    if all(rows):
        return what
    said = ranks.tell(rows.index(True), what)
    return what if has_data else said


def moments_of_all(
    ranks: Ranks,
    layouts: Sequence[BlockLayout],
    moments: list[Moments],
    new: Callable[[BlockLayout], Moments],
    like: Tensor,
) -> list[Moments]:
    """The moments of the data of all processes.

    Args:
        ranks: the processes.
        layouts: of the blocks, known to all.
        moments: of the data of this process; none if it has none.
        new: makes empty ones.
        like: a tensor of the dtype and device of the factors.

    Raises:
        RankError: the model uses its parameters otherwise in another process; `is_unsuitable`, as
            the `DataError` is where the batches of one process differ so.
    """
    has_data, parts = bool(moments), moments or [new(layout) for layout in layouts]
    shapes = [[tuple(part.shape) for part in each.sums] for each in parts]
    shapes = known_to_all(ranks, has_data, shapes)
    try:
        ranks.check_same(
            "form of the factors",
            float(zlib.crc32(repr((forms(layouts), shapes)).encode())),
            "Give data that the model takes in the same way: it uses its parameters otherwise.",
        )
    except RankError as error:
        error.is_unsuitable = True
        raise
    if not has_data:
        for each, own in zip(parts, shapes, strict=True):
            each.sums = [like.new_zeros(shape) for shape in own]
    sums = iter(added_up(ranks, [part for each in parts for part in each.sums], like))
    for each, own in zip(parts, shapes, strict=True):
        each.sums = [next(sums) for _ in own]
    return parts


def added_up(ranks: Ranks, parts: Sequence[Tensor], like: Tensor) -> list[Tensor]:
    """The sums over processes of some tensors, in their shapes: one all-reduce."""
    flat = torch.cat([part.reshape(-1).to(like) for part in parts])
    sums = ranks.total(flat).split([part.numel() for part in parts])
    return [whole.view(part.shape) for whole, part in zip(sums, parts, strict=True)]
