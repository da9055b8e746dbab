# SPDX-License-Identifier: Apache-2.0
"""The arguments that estimators share: limits, blocks and budgets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import torch

from hesse.checkpoint import FilePath
from hesse.errors import ArgumentError, check_count
from hesse.memory.sizes import parse_bytes
from hesse.operators.algebra import LinearOperator
from hesse.progress import Callback, Run

Budget = int | float | str | None

HUTCHINSON = "take method='hutchinson', which needs two vectors"

EXACT = 10
"""So few products give the whole matrix, and with it the truth."""

_BLOCK, _SMALL = 8, 1 << 16


@dataclass(frozen=True)
class Arguments:
    """What every estimator takes beside its question and its target."""

    max_products: int | None
    max_seconds: float | None
    generator: torch.Generator | None
    callback: Callback | None
    progress: bool
    checkpoint: FilePath
    block_size: int | None
    memory_budget: Budget

    def run(self, title: str, total: int | None = None) -> Run:
        """The run that they limit and show."""
        return Run(
            title,
            max_products=self.max_products,
            max_seconds=self.max_seconds,
            callback=self.callback,
            progress=self.progress,
            total=total,
        )


def block_size_of(A: LinearOperator, block_size: int | None, call: str) -> int:
    """How many probes go together; of themselves only small ones, whose overhead they share."""
    if block_size is None:
        return _BLOCK if A.shape[1] <= _SMALL else 1
    return check_count("block_size", block_size, 1, call)


def vectors_in(A: LinearOperator, memory_budget: Budget, call: str) -> int:
    """How many vectors fit into the budget."""
    if memory_budget is None:
        return 1 << 62
    fits = parse_bytes(memory_budget, call) // vector_bytes(A)
    if fits < 2:
        too_small(A, 2, fits, "a vector and its product", call)
    return fits


def vector_bytes(A: LinearOperator) -> int:
    """Memory of one vector."""
    return max(A.shape) * torch.finfo(A.dtype).bits // 8


def too_small(
    A: LinearOperator, need: int, fits: int, what: str, call: str, instead: str = ""
) -> NoReturn:
    """Raise because `what` needs so many vectors; what to do `instead` of raising the budget."""
    raise ArgumentError(
        call,
        expected=f"a memory budget of at least {need * vector_bytes(A):,} bytes, for {what}",
        got=f"room for {fits} vectors of {vector_bytes(A):,} bytes",
        remedy=f"Raise memory_budget, or {instead}." if instead else "Raise memory_budget.",
    )
