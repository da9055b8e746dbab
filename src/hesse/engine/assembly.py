# SPDX-License-Identifier: Apache-2.0
"""How the vectors of summands make one: shared by all of them, or with a slice for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from hesse.ad.variables import Variables
from hesse.vectors.space import Space


class Assembly(Protocol):
    """From a direction to those of the summands, and from their results to one."""

    @property
    def space(self) -> Space:
        """The space of the whole vectors."""
        ...

    @property
    def is_sum(self) -> bool:
        """Whether the result of a single summand is a whole vector."""
        ...

    def take(self, vector: Tensor, index: int) -> Tensor:
        """The direction of a summand, of a vector or of the rows of a block."""
        ...

    def check(self, part: Tensor, index: int) -> None:
        """Raise if a result of a summand has another length than at the start."""
        ...

    def store(
        self, total: Tensor, index: int, part: Tensor, coefficient: float, *, first: bool
    ) -> None:
        """Add coefficient * part, the result of a summand, to the total; the first replaces it."""
        ...


@dataclass(frozen=True)
class Shared:
    """All summands are functions of the same variables: directions are one, results are added."""

    variables: Variables

    @property
    def space(self) -> Space:
        return self.variables.space

    @property
    def is_sum(self) -> bool:
        return not self.variables.frozen

    def take(self, vector: Tensor, index: int) -> Tensor:
        return vector

    def check(self, part: Tensor, index: int) -> None:
        """Results have the shapes of the variables."""

    def store(
        self, total: Tensor, index: int, part: Tensor, coefficient: float, *, first: bool
    ) -> None:
        self.variables.store(total, part, coefficient, accumulate=not first)
