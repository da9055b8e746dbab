# SPDX-License-Identifier: Apache-2.0
"""The prior N(0, 1 / delta) of each group of parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.apps.uncertainty.chosen import Chosen
from hesse.errors import ArgumentError, ShapeError, is_number
from hesse.vectors.arrays import as_numbers

PriorName = Literal["evidence", "held-out", "weight-decay"]
NAMES: list[PriorName] = ["evidence", "held-out", "weight-decay"]


@dataclass(frozen=True)
class Prior:
    """One precision for each group."""

    values: Tensor
    """delta of each group, (g,), float64."""
    group: Tensor
    """The group of each chosen parameter, (s,)."""
    names: tuple[str, ...]

    @staticmethod
    def of(precision: Any, groups: Any, chosen: Chosen) -> Prior:
        """The prior of a call; its values are 1 where they are to be found."""
        group, names = _groups(groups, chosen)
        ones = torch.ones(len(names), dtype=torch.float64, device=group.device)
        prior = Prior(ones, group, names)
        return prior if isinstance(precision, str) else prior.at(_numbers(precision, len(names)))

    def at(self, values: Tensor | float) -> Prior:
        """The same groups with other precisions."""
        given = torch.as_tensor(values, dtype=torch.float64, device=self.group.device)
        return replace(self, values=given.expand(len(self.names)).clone())

    @property
    def delta(self) -> Tensor:
        """The precision of each chosen parameter, (s,), float64."""
        return self.values[self.group]

    @property
    def summary(self) -> float | dict[str, float]:
        """The precision, or that of each group by its name."""
        if len(self.names) == 1:
            return float(self.values[0])
        return dict(zip(self.names, self.values.tolist(), strict=True))

    def sums(self, entries: Tensor) -> Tensor:
        """The sums of numbers of the parameters over each group, (g,)."""
        total = torch.zeros_like(self.values)
        return total.index_add_(0, self.group, entries.double())


def _groups(groups: Any, chosen: Chosen) -> tuple[Tensor, tuple[str, ...]]:
    leaves, names = chosen.leaf_of, chosen.whole.names
    if groups is None:
        return torch.zeros_like(leaves), ("all",)
    if isinstance(groups, str) and groups == "parameter":
        present = leaves.unique()
        number = torch.searchsorted(present, leaves)
        return number, tuple(names[int(i)] or "params" for i in present)
    if isinstance(groups, str) or not isinstance(groups, Sequence) or not groups:
        raise ArgumentError(
            expected="groups to be None, 'parameter', or a list of names or patterns",
            got=repr(groups),
            remedy="Give groups=['0.*', '2.*'] for a prior precision of each layer.",
        )
    owner = torch.full((chosen.whole.n,), -1, device=leaves.device)
    for k, pattern in enumerate(groups):
        _, where = chosen.whole.subspace(pattern)
        owner[where] = k
    group = chosen.take(owner)
    if bool((group < 0).any()):
        missed = names[int(leaves[group < 0][0])]
        raise ArgumentError(
            expected="groups that have every parameter in one of them",
            got=f"{missed!r} in none",
            remedy="Add a pattern for it; '*' as the first one is a group for all others.",
        )
    return group, tuple(groups)


def _numbers(precision: Any, count: int) -> Tensor:
    """Positive numbers, one or one for each group."""
    is_tensor = isinstance(precision, Tensor) or hasattr(precision, "__array__")
    if not (is_number(precision) or is_tensor or isinstance(precision, (list, tuple))):
        raise _not_positive(precision)
    remedy = "Give a number for each group."
    values = as_numbers(precision, "prior", remedy, dtype=torch.float64).detach()
    if values.ndim > 1 or values.numel() not in (1, count):
        raise ShapeError(
            expected=f"a prior precision, or one for each of {count} groups",
            got=f"shape {tuple(values.shape)}",
            remedy="Give groups='parameter' for a precision of each parameter tensor.",
        )
    if not bool(((values > 0.0) & (values < math.inf)).all()):
        raise _not_positive(precision)
    return values


def _not_positive(precision: Any) -> ArgumentError:
    return ArgumentError(
        expected="prior to be a positive precision, 1 / variance, one for each group, or one of "
        f"{', '.join(map(repr, NAMES))}",
        got=repr(precision),
        remedy="A flat prior has no evidence: give a small precision, such as 1e-4.",
    )
