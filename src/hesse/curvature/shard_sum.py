# SPDX-License-Identifier: Apache-2.0
r"""`ShardSum`: the curvature matrix of data that several processes share, on sharded vectors.

$$ A v = \sum_r A_r v $$

Each rank r has a part of the data, of the parameters and of all vectors. It gathers the direction,
takes the product with its own part of the data by the operator that one process would use, and has
its part of the sum: one all-gather and one reduce-scatter. Nothing that is differentiated
communicates.

Where several groups of ranks have copies of the parameters (HSDP), both are within a group, and the
parts of the sums of the groups are then added up over the ranks that have the same ones.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from hesse.curvature.rank_sum import Make, NoData, RankSum, check_same_point
from hesse.ranks import Ranks
from hesse.vectors.exchange import gather, meet, sum_and_scatter
from hesse.vectors.rows import transposed
from hesse.vectors.space import Space, Tree


class ShardSum(RankSum):
    """The sum over ranks of the matrices of their parts of the data, on sharded vectors.

    It is made by the functions that make a curvature matrix, at parameters that are sharded. A flat
    vector is the part of this rank; trees are of `DTensor`s like the parameters.
    """

    @property
    def plan(self) -> str:
        """How products are taken."""
        return (
            f"{self.ranks}, one all-gather and one reduce-scatter a product; here:\n"
            f"{self.local.plan}"
        )

    def _here(self, x: Tree) -> Tree:
        return self.domain.whole_tree(x)

    def _matvec(self, v: Tensor) -> Tensor:
        whole = gather(self.domain, v[None])[0]
        return sum_and_scatter(self.domain, 1, lambda: self.local._matvec(whole)[None])[0]

    def _matmat(self, block: Tensor) -> Tensor:
        whole, k = gather(self.domain, transposed(block)).T, block.shape[1]
        return sum_and_scatter(self.domain, k, lambda: transposed(self.local._matmat(whole))).T

    def _curvature(self, v: Tensor) -> float:
        whole, like = gather(self.domain, v[None])[0], v.new_empty((), dtype=torch.float64)
        return float(self.ranks.sum_of(lambda: like.new_tensor(self.local._curvature(whole)), like))

    def _computed_diagonal(self) -> None:
        """None: diagonals of parts of the data are of whole vectors."""

    @cached_property
    def _gradient(self) -> Tensor:
        meet(self.domain)
        return sum_and_scatter(self.domain, 1, lambda: self.local.flat_gradient[None])[0]


def shard_sum(ranks: Ranks, make: Make, x: Tree, what: str, shift: float) -> ShardSum:
    """The sum over ranks of the matrices that make() gives at x, which is gathered."""
    with ranks.alike():
        space = Space.of(x, what=what, ranks=ranks)
    whole = space.whole_tree(x)
    with ranks.alike():
        whole_space = Space.of(whole, what=what)
        local = make(whole) or NoData(whole_space)
    if space.shards is not None and space.shards.is_replicated:
        check_same_point(ranks, whole_space, whole, what)
    return ShardSum(local, space, shift)
