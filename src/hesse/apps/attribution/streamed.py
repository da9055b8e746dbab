# SPDX-License-Identifier: Apache-2.0
"""Influences of all examples, found while the data stream: all of them, sums, or the largest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hesse.apps.attribution.matrix import Matrix
from hesse.apps.attribution.removal import Groups
from hesse.errors import NonFiniteError
from hesse.ranks import Ranks, alike
from hesse.result import Result
from hesse.risk.per_example import PerExample

Removal = Literal["downweight", "renormalise", "newton"]


@dataclass(frozen=True, repr=False)
class Top(Result):
    """The largest influences of each query, by magnitude."""

    values: Tensor
    """(Q, k), falling in magnitude."""
    indices: Tensor
    """(Q, k): the examples, or groups, in the order of the batches."""


def first_order(
    each: PerExample,
    matrix: Matrix,
    S: Tensor,
    removal: Removal,
    sets: Groups | None,
    top: int | None,
) -> tuple[Tensor | None, Top | None]:
    """I, (Q, N) of the examples of this process or (Q, groups) of all; or the largest of all.

    Args:
        S: (H + mu I)^-1 M, (n, Q).
    """
    N, first, ranks = each.number, each.places.start, each.ranks
    renormalises = removal == "renormalise"
    mean = torch.zeros(S.shape[1], 1, dtype=S.dtype, device=S.device)
    if renormalises:
        ones = torch.full((len(each.places),), 1.0 / N, dtype=S.dtype, device=S.device)
        sums = each.vjp(matrix.params, ones)
        mean = matrix.space.inners(S.T.contiguous(), sums)[:, None]
    slopes = _finite(each.jvps(matrix.params, S), first)
    pieces = (rows.T - mean for rows in slopes)
    if sets is not None:
        with alike(ranks):  # each process goes through its own batches
            total = _added(pieces, sets, first, mean)
        left = N - sets.sizes.to(mean) if renormalises else N
        scores = (total if ranks is None else ranks.total(total)) / left
        return (scores, None) if top is None else (None, largest(scores, top))
    shares = (piece / (N - 1 if renormalises else N) for piece in pieces)
    with alike(ranks):
        if top is None:
            return torch.cat([mean[:, :0], *shares], 1), None
        best = _largest_of(shares, top, first, mean[:, :0])
    return None, best if ranks is None else _largest_of_all(best, top, ranks)


def largest(scores: Tensor, k: int) -> Top:
    """The k entries of each row of largest magnitude."""
    return _largest_of(iter([scores]), k, 0, scores[:, :0])


def _finite(slopes: Iterable[Tensor], start: int) -> Iterator[Tensor]:
    """These slopes, a row for each example from `start` on; raise if one is not finite."""
    for rows in slopes:
        bad = (~torch.isfinite(rows)).flatten(1).any(1).nonzero()
        if len(bad):
            raise NonFiniteError(
                expected="examples whose losses have finite gradients",
                got=f"NaN or Inf for example {start + int(bad[0])}",
                remedy="Look at its inputs and its target, and leave it out.",
            )
        yield rows
        start += len(rows)


def _added(pieces: Iterator[Tensor], sets: Groups, start: int, like: Tensor) -> Tensor:
    """The sums over groups, (Q, groups), of the examples from `start` on."""
    total = like.new_zeros(len(like), sets.number)
    for piece in pieces:
        places, group = sets.membership(start, start + piece.shape[1])
        total.index_add_(1, group.to(piece.device), piece[:, places.to(piece.device)])
        start += piece.shape[1]
    return total


def _largest_of(pieces: Iterator[Tensor], k: int, start: int, none: Tensor) -> Top:
    """The k entries of each row of largest magnitude, of which no more are ever held.

    Args:
        pieces: columns from the place `start` on.
        none: no columns.
    """
    best = Top(none, none.long())
    for piece in pieces:
        here = torch.arange(start, start + piece.shape[1], device=piece.device).expand_as(piece)
        values, indices = torch.cat([best.values, piece], 1), torch.cat([best.indices, here], 1)
        best = _top(values, indices, k)
        start += piece.shape[1]
    return best


def _top(values: Tensor, indices: Tensor, k: int) -> Top:
    chosen = values.abs().topk(min(k, values.shape[1]), dim=1).indices
    return Top(values.gather(1, chosen), indices.gather(1, chosen))


def _largest_of_all(best: Top, k: int, ranks: Ranks) -> Top:
    """The largest of all processes, each of which has its own."""
    values, indices = (ranks.concatenated(part.T) for part in (best.values, best.indices))
    return _top(values.T, indices.T, k)
