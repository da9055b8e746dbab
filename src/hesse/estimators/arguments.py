# SPDX-License-Identifier: Apache-2.0
"""The arguments that estimators share: blocks, budgets, symmetry."""

from __future__ import annotations

from typing import NoReturn

import torch

from hesse.checkpoint import Path_
from hesse.errors import ArgumentError, OperatorError
from hesse.operators.base import LinearOperator
from hesse.operators.memory_budget import parse_bytes

Budget = int | float | str | None

_BLOCK, _SMALL = 8, 1 << 16


def block_size_of(A: LinearOperator, block_size: int | None, call: str) -> int:
    """How many probes go together; of themselves only small ones, whose overhead they share."""
    if block_size is None:
        return _BLOCK if A.shape[1] <= _SMALL else 1
    if block_size < 1:
        raise ArgumentError(
            call, expected="block_size >= 1", got=str(block_size), remedy="Leave it out."
        )
    return block_size


def vectors_in(A: LinearOperator, memory_budget: Budget, call: str) -> int:
    """How many vectors fit into the budget."""
    if memory_budget is None:
        return 1 << 62
    return parse_bytes(memory_budget, call) // vector_bytes(A)


def vector_bytes(A: LinearOperator) -> int:
    """Memory of one vector."""
    return max(A.shape) * torch.finfo(A.dtype).bits // 8


def too_small(A: LinearOperator, need: int, fits: int, what: str, call: str) -> NoReturn:
    """Raise because `what` needs so many vectors."""
    raise ArgumentError(
        call,
        expected=f"a memory budget of at least {need * vector_bytes(A):,} bytes, for {what}",
        got=f"room for {fits} vectors of {vector_bytes(A):,} bytes",
        remedy="Raise memory_budget, or take a method that needs fewer vectors: 'hutchinson' "
        "needs two.",
    )


def check_symmetric(A: LinearOperator, call: str) -> None:
    """Raise unless the operator promises A = A'."""
    if not A.symmetric:
        raise OperatorError(
            call,
            expected="a symmetric operator",
            got="one that is not known to be symmetric",
            remedy="Pass symmetric=True if A = A'.",
        )


def generator_for(generator: torch.Generator | None, checkpoint: Path_) -> torch.Generator | None:
    """The generator; where its state is to be saved and none was given, one of its own."""
    if generator is not None or checkpoint is None:
        return generator
    return torch.Generator().manual_seed(int(torch.randint(1 << 62, ())))
