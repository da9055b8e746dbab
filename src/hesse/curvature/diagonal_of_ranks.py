# SPDX-License-Identifier: Apache-2.0
"""The diagonal of a sum over ranks: the sum of the diagonals that each computes of its part."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hesse.operators.computed_diagonal import ComputedDiagonal
from hesse.ranks import Ranks
from hesse.vectors.random import drawn_seed
from hesse.vectors.space import Space

_APART = 0x9E3779B97F4A7C15  # between the seeds of two ranks


class DiagonalOfRanks(ComputedDiagonal):
    """The sum of diagonals, one of each rank with data.

    Args:
        local: that of this rank; None if it has no data.
        ranks, space: of the sum, of which each rank has all entries.
        known: how many vectors it takes, the price of a sample, and what is special about it.
    """

    def __init__(
        self,
        local: ComputedDiagonal | None,
        ranks: Ranks,
        space: Space,
        known: tuple[int, int, str],
    ) -> None:
        self._local, self._ranks, self._space = local, ranks, space
        self._known = known

    @staticmethod
    def of(local: Any, ranks: Ranks, space: Space, *, has_data: bool) -> DiagonalOfRanks | None:
        """That of the operators `local`; None if one of them has no way to its diagonal."""
        with ranks.alike():
            way = local._computed_diagonal() if has_data else None
            known = (0, 0, "") if way is None else (
                way.num_vectors, way.products_a_sample, way.about
            )  # fmt: skip
        rows = ranks.gather(has_data, way is not None, *known[:2])
        if any(data and not can for data, can, *_ in rows):
            return None
        first = next(rank for rank, row in enumerate(rows) if row[0])
        vectors, price = (int(max(row[i] for row in rows)) for i in (2, 3))
        return DiagonalOfRanks(way, ranks, space, (vectors, price, ranks.tell(first, known[2])))

    @property
    def num_vectors(self) -> int:
        return self._known[0]

    @property
    def products_a_sample(self) -> int:
        return self._known[1]

    @property
    def about(self) -> str:
        return self._known[2]

    def exact(self) -> Tensor:
        local, space = self._local, self._space
        return self._ranks.sum_of(
            lambda: space.zeros() if local is None else local.exact(), space.empty()
        )

    def samples(self, count: int, generator: torch.Generator | None) -> list[Tensor]:
        local, space = self._local, self._space
        seed = drawn_seed(self._ranks.generator if generator is None else generator)
        own = torch.Generator().manual_seed((seed + self._ranks.rank * _APART) % 2**62)

        def here() -> Tensor:
            if local is None:
                return space.zeros().repeat(count, 1)
            return torch.stack(local.samples(count, own))

        return list(self._ranks.sum_of(here, space.zeros().repeat(count, 1)))
