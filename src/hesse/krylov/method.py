# SPDX-License-Identifier: Apache-2.0
"""`Method`: how a linear system is solved, as an object. One method is one file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from hesse.krylov.columns import solve_columns
from hesse.krylov.hyperparameters import Hyperparameters
from hesse.krylov.solution import Solution
from hesse.krylov.system import System


@dataclass(frozen=True, repr=False)
class Method(Hyperparameters, ABC):
    """The options of a method and its iteration; `hesse.solve` calls `solve`.

    A subclass is a frozen dataclass that implements `_solve` for one right-hand side, or overrides
    `solve` where it treats a block as a whole.
    """

    name: ClassVar[str]

    def solve(self, system: System) -> Solution:
        """The solution for a vector b, or for a block b column by column."""
        return solve_columns(self._solve, system)

    @abstractmethod
    def _solve(self, system: System) -> Solution:
        """The solution for a vector b."""
