# SPDX-License-Identifier: Apache-2.0
"""`RankRows`: vectors of outputs or inputs, of which each process has those of its own examples.

Each leaf has a row for each example. Of the whole leaf the rows of the processes lie one after the
other. Outside a leaf is a plain tensor, the rows of this process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hesse.errors import ShapeError
from hesse.ranks import Ranks
from hesse.vectors.cuts import RowCut
from hesse.vectors.division import Division
from hesse.vectors.space import Space


@dataclass(frozen=True)
class RankRows(Division):
    """Leaves of which each process has its own rows.

    Args:
        rank: of this process.
        cuts: of the leaves.
    """

    rank: int
    cuts: tuple[RowCut, ...]

    @property
    def ranks(self) -> int:
        """The number of processes."""
        return len(self.cuts[0].counts)

    def some(self, chosen: Sequence[int]) -> RankRows:
        """Those of some of the leaves."""
        return RankRows(self.rank, tuple(self.cuts[i] for i in chosen))

    def is_leaf(self, v: Any, part: torch.Size) -> bool:
        """Whether v has the shape of the part."""
        return v.shape == part

    def parts(self, leaves: Sequence[tuple[str, Any]]) -> list[Tensor]:
        """The leaves themselves."""
        return [leaf for _, leaf in leaves]

    def whole(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """The parts themselves."""
        return list(parts)

    def sharers(self, ranks: Ranks) -> Ranks:
        """All of them."""
        return ranks

    def holders(self, ranks: Ranks) -> list[Ranks]:
        """None."""
        return []


def over_ranks(ranks: Ranks, here: Space | None, device: torch.device) -> Space:
    """The space of the vectors of which each process has those of a space of its own.

    Args:
        ranks: the processes, which all call this.
        here: the space of this process; None if it has no examples.
        device: that of its vectors.

    Raises:
        ShapeError, RankError: the leaves differ in more than the number of their rows.

    Cost: two all-reduces of some numbers, and a message of the names and shapes.
    """
    known = [bool(row[0]) for row in ranks.gather(here is not None)]
    first: Space = ranks.tell(known.index(True), here)  # pyright: ignore[reportAssignmentType]
    with ranks.alike():
        rows = [shape[1:] for shape in first.shapes]
        here = here or replace(first, shapes=tuple(torch.Size([0, *row]) for row in rows))
        _check_like(here, first)
    counts = zip(*ranks.gather(*(shape[0] for shape in here.shapes)), strict=True)
    cuts = tuple(
        RowCut(tuple(map(int, count)), row) for count, row in zip(counts, rows, strict=True)
    )
    return replace(here, device=device, ranks=ranks, shards=RankRows(ranks.rank, cuts))


def _check_like(here: Space, first: Space) -> None:
    """Raise unless two spaces differ in the numbers of rows alone."""
    ours, theirs = ((s.names, s.dtypes, [shape[1:] for shape in s.shapes]) for s in (here, first))
    if ours != theirs or any(len(shape) == 0 for shape in (*here.shapes, *first.shapes)):
        raise ShapeError(
            expected="outputs, or inputs, on all ranks that differ in the first dimension only, so "
            "that they can be concatenated",
            got=f"{first.describe()} on the first rank with data; here {here.describe()}",
            remedy="Pad what differs; a scalar for a batch cannot be concatenated: give it the "
            "shape (1,).",
        )
