# SPDX-License-Identifier: Apache-2.0
"""Scores that come block by block, each from a system of its own; saved after every block."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import Tensor

from hesse.checkpoint import Checkpoint
from hesse.krylov.solution import Solution

Block = TypeVar("Block")


@dataclass
class Done:
    """What the blocks have given so far."""

    scores: list[Tensor] = field(default_factory=list)
    """One tensor for each block."""
    products: int = 0
    converged: bool = True


@dataclass(frozen=True)
class Blocks(Generic[Block]):
    """Solve for one block after the other; a run that was killed continues with the next one.

    Args:
        solve: from a block to its scores and the solution that they come from.
    """

    solve: Callable[[Block], tuple[Tensor, Solution]]
    file: Checkpoint

    def of(self, blocks: Iterable[Block]) -> tuple[Done, Solution | None]:
        """The scores of all of them, and the last solution; None if all were in the file."""
        done, solution = Done(), None
        self.file.resume(done)
        for number, block in enumerate(blocks):
            if number < len(done.scores):
                continue
            scores, solution = self.solve(block)
            done.scores.append(scores)
            done.products += solution.products
            done.converged = done.converged and solution.converged
            self.file.save(done)
        return done, solution
