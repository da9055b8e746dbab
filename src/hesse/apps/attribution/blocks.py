# SPDX-License-Identifier: Apache-2.0
"""Scores that come block by block, each from a system of its own; saved after every block."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from hesse.checkpoint import Checkpoint
from hesse.errors import Status
from hesse.krylov.solution import Solution
from hesse.operators.diagonal import DiagonalOperator
from hesse.risk.per_example import PerExample
from hesse.vectors.space import Space, Tree

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
        """The scores of all of them, and the last solution; None if all were in the file.

        Raises:
            KeyboardInterrupt: in a system, whose block is taken again when the run continues.
        """
        done, solution = Done(), None
        self.file.resume(done)
        for number, block in enumerate(blocks):
            if number < len(done.scores):
                continue
            scores, solution = self.solve(block)
            if solution.status is Status.INTERRUPTED:
                self.file.save(done, now=True)
                raise KeyboardInterrupt
            done.scores.append(scores)
            done.products += solution.products
            done.converged = done.converged and solution.converged
            self.file.save(done)
        return done, solution


def examples_at(params: Tree, each: PerExample) -> DiagonalOperator:
    """By which a checkpoint recognises the examples, in their order, at these parameters.

    The curvature does not tell: it may be given, and that of least squares knows no targets.
    """
    places = torch.arange(each.places.start, each.places.stop, dtype=torch.float64)
    space = Space.of(params, what="params", ranks=each.ranks)
    return DiagonalOperator(space, each.vjp(params, torch.cos((places + 1.0) ** 2)))
