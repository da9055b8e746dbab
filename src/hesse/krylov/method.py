# SPDX-License-Identifier: Apache-2.0
"""`Method`: how a linear system is solved, as an object. One method is one file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from hesse.krylov.columns import solve_columns
from hesse.krylov.solution import Solution
from hesse.krylov.system import System
from hesse.methods import Hyperparameters


@dataclass(frozen=True, repr=False)
class Method(Hyperparameters, ABC):
    """A method of `hesse.solve`: its options, and its iteration in `solve_system`.

    A subclass is a frozen dataclass that implements `_solve` for one right-hand side. It overrides
    `solve_system` if it treats the columns of a block together.
    """

    name: ClassVar[str]
    """What `Solution.method` says."""

    @property
    def is_homogeneous(self) -> bool:
        """Whether no option is in the units of A, b or x, so that the system may be scaled."""
        return True

    def solve_system(self, system: System) -> Solution:
        """The solution for a vector b, or for a block b column by column."""
        return solve_columns(self._solve, system)

    @abstractmethod
    def _solve(self, system: System) -> Solution:
        """The solution for a vector b."""
