# SPDX-License-Identifier: Apache-2.0
"""`Share`: what a process knows of the data that it shares with others."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.boundary import warn
from hesse.data.batches import Batches
from hesse.data.trees import tensors
from hesse.errors import ArgumentError, DataError, kind_of
from hesse.ranks import RankError, Ranks
from hesse.vectors.raw import raw_bytes
from hesse.vectors.shards import is_sharded
from hesse.vectors.space import Space, Tree


@dataclass(frozen=True)
class Share:
    """The part of one process in the data of a risk.

    Args:
        ranks: the processes that have the other parts; None if the risk is not summed over them.
        weight: of all data, on all ranks.
        counts_decay: whether this process adds the weight decay: the first one with data does.
        has_several: whether there are several batches in all, so that their losses must average.
        first: the number of the first batch of this process among all, in the order of the ranks.
    """

    ranks: Ranks | None
    weight: float
    counts_decay: bool
    has_several: bool
    first: int = 0

    @staticmethod
    def of(data: Batches, ranks: Ranks | None, *settings: float) -> Share:
        """The share of a process with these data; all ranks call it together.

        Raises:
            RankError: the settings of the risk, as numbers, are not the same on all ranks.
        """
        if ranks is None:
            return Share(None, data.total_weight, True, data.count > 1)
        rows = ranks.gather(data.total_weight, data.count, _code(data), *settings)
        if any(row[3:] != rows[0][3:] for row in rows):
            raise RankError(
                expected="the same weight_decay and reduction on all ranks",
                got=f"{[row[3:] for row in rows]}",
                remedy="Give all ranks the same; it counts once, not once for each rank.",
            )
        weights, counts, codes, *_ = (list(column) for column in zip(*rows, strict=True))
        owner = next((rank for rank, count in enumerate(counts) if count), None)
        if owner is None:
            raise DataError(
                expected="at least one batch on one of the ranks",
                got="none on any",
                remedy="Give each rank its part of the data, which may be empty on some of them.",
            )
        _warn_of_same(counts, codes)
        first = int(sum(counts[: ranks.rank]))
        return Share(ranks, math.fsum(weights), owner == ranks.rank, sum(counts) > 1, first)

    def whole(self, params: Tree) -> Tree:
        """Parameters that are sharded over the ranks, gathered on each; others as they are.

        None for sharded parameters where there are no ranks to gather them from.
        """
        if not any(map(is_sharded, tensors(params))):
            return params
        if self.ranks is None:
            return None
        with self.ranks.alike():
            space = Space.of(params, what="params", ranks=self.ranks)
        return space.whole_tree(params)


def ranks_of(group: Any) -> Ranks | None:
    """The processes of the argument `group`."""
    return group if group is None or isinstance(group, Ranks) else Ranks(group)


def check_sampler(data: Any, ranks: Ranks | None) -> None:
    """Raise where a `DistributedSampler` repeats or drops examples to give all ranks as many."""
    sampler = getattr(data, "sampler", None)
    total = getattr(sampler, "total_size", None)
    if ranks is None or total is None:
        return
    count = len(getattr(sampler, "dataset", ()))
    if total != count:
        raise ArgumentError(
            expected="every example on one rank, once",
            got=f"{kind_of(sampler)} that gives {total} for {count} examples",
            remedy="Give each rank DataLoader(Subset(dataset, range(rank, len(dataset), size)), "
            "...): the parts need not be equal.",
        )


def check_is_whole(risk: Any) -> None:
    """Raise unless all of a risk is in this process."""
    if risk.ranks is None:
        return
    raise ArgumentError(
        expected="a risk whose data are all in this process",
        got=f"the part of {risk.ranks}",
        remedy="Give risk.local for that part alone. Of all ranks are risk(params), "
        "risk.per_example, hvp, hessian_operator, ggn_operator, fisher_operator, "
        "gradient_covariance_operator, kfac_operator, ekfac_operator, jacobian_operator, "
        "ntk_operator, fisher_root_operator, what is computed from these (solvers, eigenvalues, "
        "estimators), minimize, least_squares, HessianFree, and hesse.apps.",
    )


def _code(data: Batches) -> float:
    """A number that tells the first batch from others."""
    if not data.count:
        return -1.0
    first = data.first  # read by a loader
    return code_of(tensors((first.inputs, first.targets)))


def code_of(tensors: Iterable[Tensor]) -> float:
    """A number that tells tensors from others."""
    code = 0
    for tensor in tensors:
        code = zlib.crc32(_bytes(tensor), zlib.crc32(repr(tuple(tensor.shape)).encode(), code))
    return float(code)


def _bytes(tensor: Tensor) -> bytes:
    if tensor.layout is not torch.strided:
        return b""
    return raw_bytes(tensor.cpu()).numpy().tobytes()


def _warn_of_same(counts: list[float], codes: list[float]) -> None:
    """Warn where two ranks begin with the same batch."""
    first: dict[float, int] = {}
    for rank, (count, code) in enumerate(zip(counts, codes, strict=True)):
        if count and code in first:
            warn(
                f"ranks {first[code]} and {rank} begin with the same batch: each rank is to have "
                "its own part of the data, which are added up"
            )
            return
        first[code] = rank
