# SPDX-License-Identifier: Apache-2.0
"""`MinimizeMethod`: how `hesse.minimize` makes and judges steps, as an object."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from hesse.errors import ArgumentError, check_count
from hesse.methods import Hyperparameters
from hesse.operators.algebra import LinearOperator
from hesse.optimize.proposal import LoopDescent, LoopSearch
from hesse.progress import Run


@dataclass(frozen=True)
class Setting:
    """What a method is told of the minimisation."""

    preconditioner: LinearOperator | None
    limits: Callable[[], Run]
    """The limits of an inner solve that begins now."""


@dataclass(frozen=True, repr=False)
class MinimizeMethod(Hyperparameters, ABC):
    """A method of `hesse.minimize`: its options, and the descent and search that it pairs."""

    name: ClassVar[str]

    @abstractmethod
    def compose(self, setting: Setting) -> tuple[LoopDescent, LoopSearch]:
        """A descent and a search for one minimisation."""

    def _refuse_preconditioner(self, setting: Setting) -> None:
        """Raise if a preconditioner was given, for which the method has no use."""
        if setting.preconditioner is not None:
            raise ArgumentError(
                expected=f"no preconditioner with method={self.name!r}",
                got=str(setting.preconditioner),
                remedy="Leave it out, or take method='trust-krylov'.",
            )


@dataclass(frozen=True, repr=False)
class IterativeMethod(MinimizeMethod):
    """A method with an inner solve that has a limit of its own."""

    max_inner_iterations: int = 500

    def _check(self) -> None:
        self._set(
            max_inner_iterations=check_count("max_inner_iterations", self.max_inner_iterations, 1)
        )
