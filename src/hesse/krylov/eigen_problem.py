# SPDX-License-Identifier: Apache-2.0
"""`EigenProblem`: what `hesse.eigsh` is asked for; `EigenMethod`: how it is solved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hesse.errors import ArgumentError
from hesse.krylov.eigenpairs import Eigenpairs, Selection, Which
from hesse.krylov.rounding import unit_roundoff
from hesse.krylov.starting_block import starting_block
from hesse.methods import Hyperparameters
from hesse.operators.algebra import LinearOperator
from hesse.progress import Run


@dataclass
class EigenProblem:
    """A u = theta B u: which pairs, how accurate, where to start, and the limits."""

    A: LinearOperator
    k: int
    which: Which
    rtol: float | None
    B: LinearOperator | None
    given: Tensor
    """The vectors to start from, (n, j); none for j = 0."""
    generator: torch.Generator | None
    memory_budget: int | None
    """Bytes."""
    run: Run

    def start(self, block_size: int | None) -> Tensor:
        """The starting block, (n, b): the given vectors and random ones."""
        return starting_block(self.A, self.given, block_size, self.generator)

    def release_given(self) -> None:
        """Free the memory of the given vectors, after they were copied."""
        self.given = self.given[:, :0].clone()

    def selection(self, k: int, eps: float | None = None) -> Selection:
        """k of the wanted pairs; `eps` is the unit roundoff of the basis, if not of the vectors."""
        eps = unit_roundoff(self.A) if eps is None else eps
        rtol = float(eps**0.5 if self.rtol is None else self.rtol)
        return Selection(k, self.which, rtol, eps)


@dataclass(frozen=True, repr=False)
class EigenMethod(Hyperparameters, ABC):
    """A method of `hesse.eigsh`: its options, and its iteration in `find_pairs`."""

    name: ClassVar[str]

    @abstractmethod
    def find_pairs(self, problem: EigenProblem) -> Eigenpairs:
        """The wanted pairs, with verified residuals."""

    def _refuse(self, other: str, **arguments: object) -> None:
        """Raise if one of these arguments, which only the method `other` takes, was given."""
        for name, value in arguments.items():
            if value is not None:
                raise ArgumentError(
                    expected=f"{name} only with method={other!r}",
                    got=f"it with method={self.name!r}",
                    remedy=f"Leave it out, or take method={other!r}.",
                )
