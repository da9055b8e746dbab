# SPDX-License-Identifier: Apache-2.0
r"""`RankSum`: the curvature matrix of data that several processes share.

$$ A v = \sum_r A_r v $$

Each rank r has a part of the data and all parameters. It takes the product with its own part by the
operator that one process would use, and one all-reduce adds the parts up. All ranks get the same
bits, so that solvers and estimators take the same steps on each of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.curvature.diagonal_of_ranks import DiagonalOfRanks
from hesse.curvature.operator import CurvatureOperator
from hesse.curvature.value_of_ranks import NoValue, ValueOfRanks
from hesse.operators.algebra import LinearOperator
from hesse.operators.diagonal import IdentityOperator
from hesse.ranks import Ranks
from hesse.risk.risk import Risk
from hesse.vectors.raw import raw_bytes
from hesse.vectors.space import Space, Tree

T = TypeVar("T")


class NoData(NoValue):
    """The part of a rank without data: zero."""

    def __init__(self, space: Space) -> None:
        super().__init__(space, symmetric=True)

    def at(self, x: Tree) -> NoData:
        self.domain.leaves(x, what="x")
        return self

    def _matvec(self, v: Tensor) -> Tensor:
        return torch.zeros_like(v)


class RankSum(ValueOfRanks):
    """The sum over ranks of a symmetric curvature matrix of each rank's part of the data.

    It is made by the functions that make a curvature matrix, of a risk with `group=`.

    Args:
        local: the matrix of this rank's part.
        space: of the vectors, with the processes.
        shift: the weight decay, which is in the part of one rank.
    """

    def __init__(self, local: CurvatureOperator | NoData, space: Space, shift: float = 0.0) -> None:
        super().__init__(space, symmetric=True)
        assert space.ranks is not None
        self.local, self.ranks, self._shift = local, space.ranks, shift

    @property
    def mode(self) -> str:
        """How this rank takes its products."""
        return self.local.mode

    @property
    def plan(self) -> str:
        """How products are taken."""
        return f"{self.ranks}, one all-reduce a product; here:\n{self.local.plan}"

    @public("{self}.at(x)")
    def at(self, x: Tree) -> RankSum:
        """The matrix of the same function at another point of the same structure."""
        return type(self)(self.local.at(self._here(x)), self.domain, self._shift)

    def _here(self, x: Tree) -> Tree:
        """The whole point, as this rank needs it."""
        return x

    def _split_shift(self) -> tuple[LinearOperator, float]:
        shift = self._shift
        return (self - shift * IdentityOperator(self.domain), shift) if shift else (self, 0.0)

    def _matvec(self, v: Tensor) -> Tensor:
        return self.ranks.sum_of(lambda: self.local._matvec(v), torch.empty_like(v), v)

    def _matmat(self, block: Tensor) -> Tensor:
        return self.ranks.sum_of(lambda: self.local._matmat(block), torch.empty_like(block), block)

    def _curvature(self, v: Tensor) -> float:
        like = torch.empty((), dtype=torch.float64, device=self.device)
        return float(self.ranks.sum_of(lambda: like.new_tensor(self.local._curvature(v)), like, v))

    def _computed_diagonal(self) -> Any:
        return self._known_way

    @cached_property
    def _known_way(self) -> Any:
        has_data = not isinstance(self.local, NoData)
        return DiagonalOfRanks.of(self.local, self.ranks, self.domain, has_data=has_data)

    @cached_property
    def _gradient(self) -> Tensor:
        return self.ranks.sum_of(lambda: self.local.flat_gradient, self.domain.empty())

    def _expression(self) -> str:
        return f"{self.local._expression()} of {self.ranks.size} ranks"


Make = Callable[[Tree], CurvatureOperator | None]
"""The matrix of this rank's part of the data at a point; None where it has none."""


def rank_sum(ranks: Ranks, make: Make, x: Tree, what: str, shift: float) -> RankSum:
    """The sum over ranks of the matrices that make() gives.

    Raises:
        RankError: x, which `what` names, is not the same on all ranks.
    """
    with ranks.alike():
        space = Space.of(x, what=what, ranks=ranks)
        local = make(x) or NoData(space)
    check_same_point(ranks, space, x, what)
    return RankSum(local, space, shift)


def check_same_point(ranks: Ranks, space: Space, x: Tree, what: str) -> None:
    """Raise on all ranks unless x is the same on all, if each of them has all of it."""
    if space.shards is None:
        with ranks.alike():
            code = _code(space, x)
        ranks.check_same(
            what,
            code,
            "Give all ranks the same parameters: DistributedDataParallel does at construction, or "
            "torch.distributed.broadcast.",
        )


def look_here(risk: Risk, look: Callable[[Risk], T]) -> T | None:
    """What look() finds in the part of a risk in this process; None where it has no data.

    An error on one rank is one on all.
    """
    if risk.ranks is None:
        return look(risk)
    with risk.ranks.alike():
        return look(risk.local) if risk.num_summands else None


def look_once(risk: Risk, look: Callable[[Risk], T]) -> T:
    """What look() finds on the first rank with data, on every rank: what can be pickled."""
    found = look_here(risk, look)
    if risk.ranks is None:
        return cast(T, found)
    has_data = [bool(row[0]) for row in risk.ranks.gather(risk.num_summands > 0)]
    return cast(T, risk.ranks.tell(has_data.index(True), found))


def _code(space: Space, x: Tree) -> float:
    """A number that tells a tree from others."""
    code = zlib.crc32(repr((space.names, space.shapes, space.dtypes)).encode())
    for leaf in space.leaves(x, what="x"):
        code = zlib.crc32(raw_bytes(leaf.cpu()).numpy().tobytes(), code)
    return float(code)
