# SPDX-License-Identifier: Apache-2.0
"""Who is removed, and what is left of the mean."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Number
from typing import Any

import torch
from torch import Tensor

from hesse.data.selection import checked_indices
from hesse.errors import ArgumentError
from hesse.ranks import alike
from hesse.risk.per_example import PerExample
from hesse.risk.risk import Risk
from hesse.vectors.arrays import as_numbers


@dataclass(frozen=True)
class Groups:
    """Sets of examples, which may overlap: pairs of an example and a group that it is in."""

    examples: Tensor
    group: Tensor
    number: int
    total: int

    @staticmethod
    def of(groups: Any, each: PerExample) -> Groups:
        """The groups of a call: a label for each example, or a list of sets of places."""
        total, ranks = each.number, each.ranks
        if isinstance(groups, Tensor) or hasattr(groups, "__array__"):
            with alike(ranks):
                labels = _labels(groups, len(each.places))
            labels = labels if ranks is None else ranks.concatenated(labels)
            if int(labels.max()) < 0:
                raise _no_groups("no label of 0 or more", total)
            examples = (labels >= 0).nonzero()[:, 0]
            made = Groups(examples, labels[examples].long(), int(labels.max()) + 1, total)
        elif isinstance(groups, Sequence) and not isinstance(groups, str) and len(groups) > 0:
            for part in groups:
                if isinstance(part, (Number, str)) or getattr(part, "ndim", 1) == 0:
                    raise _no_groups(f"a list with {part!r}, a single {type(part).__name__}", total)
            places = [checked_indices(part, total).unique() for part in groups]
            owners = [torch.full((len(part),), k) for k, part in enumerate(places)]
            made = Groups(torch.cat(places), torch.cat(owners), len(places), total)
            if ranks is not None:
                ranks.check_same("groups", made.code, "Give all ranks the same sets of places.")
        else:
            raise _no_groups(type(groups).__name__, total)
        if int(made.sizes.max()) == total:
            raise ArgumentError(
                expected="groups that leave examples",
                got="a group of all of them",
                remedy="Remove a part of the data.",
            )
        return made

    @cached_property
    def sizes(self) -> Tensor:
        """The number of examples of each group."""
        return torch.bincount(self.group, minlength=self.number)

    @property
    def code(self) -> float:
        """A number that tells the groups from others."""
        return float(zlib.crc32(torch.stack([self.examples, self.group]).numpy().tobytes()))

    def membership(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """The places within [start, stop), and their groups."""
        here = (self.examples >= start) & (self.examples < stop)
        return self.examples[here] - start, self.group[here]

    def indicator(self, k: int, places: range) -> Tensor:
        """1 for those of the examples at some places that are in group k."""
        ones = torch.zeros(self.total, dtype=torch.float64)
        ones[self.examples[self.group == k]] = 1.0
        return ones[places.start : places.stop]


def check_renormalises(risk: Risk, total: int) -> None:
    """Raise unless a mean over N - 1 is what is left of the data part without an example."""
    weight = risk.share.weight
    if not risk.averages or risk.is_weighted or abs(weight - total) > 1e-9 * total:
        got = f"{total} examples of the total weight {weight:g}" if risk.averages else "a sum"
        raise ArgumentError(
            expected="removal='renormalise' of a mean over examples that weigh alike",
            got=got,
            remedy="Use removal='downweight', which keeps what the mean divides by.",
        )


def check_newton(risk: Risk, curvature: Any, groups: Any) -> None:
    """Raise unless the curvature without a group can be taken."""
    if groups is None:
        raise ArgumentError(
            expected="groups for removal='newton': every removed set takes a system of its own",
            got="none",
            remedy="Give groups=[[3], [7, 8]] of the examples in question, or use "
            "removal='downweight' for all.",
        )
    if not isinstance(curvature, str) or curvature == "ekfac":
        raise ArgumentError(
            expected="curvature='ggn' or 'hessian' for removal='newton', which takes the curvature "
            "of the remaining data",
            got=curvature if isinstance(curvature, str) else "an operator",
            remedy="Name one of them.",
        )
    if risk.is_weighted:
        raise ArgumentError(
            expected="a risk without weights of examples for removal='newton'",
            got="one with weights",
            remedy="Use removal='downweight'.",
        )


def _labels(groups: Any, number: int) -> Tensor:
    labels = as_numbers(groups, "groups", "Give a label for each example.").detach().cpu()
    is_integer = labels.dtype in (torch.int64, torch.int32, torch.int16, torch.int8)
    if labels.shape != (number,) or not is_integer:
        raise _no_groups(f"shape {tuple(labels.shape)}, {labels.dtype}", number)
    return labels.long()


def _no_groups(got: str, total: int) -> ArgumentError:
    return ArgumentError(
        expected=f"groups: a tensor of {total} labels from 0 (-1: in no group), or a list of sets "
        "of places",
        got=got,
        remedy="Give groups=[[0, 5], [7]], or a label for each example, in the order of the "
        "batches.",
    )
