# SPDX-License-Identifier: Apache-2.0
"""`MinimizeMethod`: how `hesse.minimize` makes and judges steps, as an object."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from hesse.errors import ArgumentError, check_count
from hesse.methods import Hyperparameters
from hesse.operators.algebra import LinearOperator
from hesse.optimize.box import Box
from hesse.optimize.factory import Factory
from hesse.optimize.proposal import LoopDescent, LoopSearch
from hesse.progress import Run


@dataclass(frozen=True)
class Setting:
    """What a method is told of the minimisation."""

    preconditioner: LinearOperator | None
    limits: Callable[[], Run]
    """The limits of an inner solve that begins now."""
    curvature_at: Callable[[Tensor], LinearOperator]
    """x -> the curvature there."""
    box: Box | None = None
    """The bounds, if there are some."""


@dataclass(frozen=True, repr=False)
class MinimizeMethod(Hyperparameters, ABC):
    """A method of `hesse.minimize`: its options, and the descent and search that it pairs."""

    name: ClassVar[str]

    @abstractmethod
    def compose(self, setting: Setting) -> tuple[LoopDescent, LoopSearch]:
        """A descent and a search for one minimisation."""

    @property
    def hessian(self) -> Literal["hessian"] | Factory:
        """What it takes as the Hessian: "hessian" for products, or a function that makes it."""
        return "hessian"

    @property
    def takes_bounds(self) -> bool:
        """Whether its steps keep within the bounds of the setting."""
        return False

    def check_bounds(self, box: Box | None) -> None:
        """Raise if bounds were given and it does not keep within them."""
        if box is not None and not self.takes_bounds:
            raise ArgumentError(
                expected="a method that keeps within bounds: 'enriched', 'lbfgs' or 'trust-cg'",
                got=repr(self),
                remedy="Take one of these, or leave method out.",
            )


@dataclass(frozen=True, repr=False)
class IterativeMethod(MinimizeMethod):
    """A method with an inner solve that has a limit of its own."""

    max_inner_iterations: int = 500

    def _check(self) -> None:
        self._set(
            max_inner_iterations=check_count("max_inner_iterations", self.max_inner_iterations, 1)
        )
