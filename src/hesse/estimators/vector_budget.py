# SPDX-License-Identifier: Apache-2.0
"""How many vectors an estimator may hold, and how many products it takes at once."""

from __future__ import annotations

from typing import NoReturn

import torch

from hesse.errors import ArgumentError, check_count
from hesse.memory.sizes import parse_bytes
from hesse.operators.algebra import LinearOperator

Budget = int | float | str | None

_BLOCK, _SMALL = 8, 1 << 16
_UNLIMITED = 1 << 62


def choose_block_size(A: LinearOperator, block_size: int | None) -> int:
    """The block size that was given; by default 8 where overhead dominates a product, else 1."""
    if block_size is None:
        return _BLOCK if A.domain.n <= _SMALL else 1
    return check_count("block_size", block_size, 1)


def vectors_in(A: LinearOperator, memory_budget: Budget) -> int:
    """The number of vectors that fit into the budget."""
    if memory_budget is None:
        return _UNLIMITED
    fits = parse_bytes(memory_budget) // vector_bytes(A)
    if fits < 2:
        raise_too_small(A, 2, fits, "a vector and its product")
    return fits


def vector_bytes(A: LinearOperator) -> int:
    """Bytes of one vector in a process."""
    return max(A.domain.max_size, A.codomain.max_size) * torch.finfo(A.dtype).bits // 8


def raise_too_small(
    A: LinearOperator, need: int, fits: int, purpose: str, alternative: str = ""
) -> NoReturn:
    """Raise because `purpose` takes `need` vectors; `alternative` to raising the budget."""
    raise ArgumentError(
        expected=f"a memory budget of at least {need * vector_bytes(A):,} bytes, for {purpose}",
        got=f"room for {fits} vectors of {vector_bytes(A):,} bytes",
        remedy=f"Raise memory_budget, or {alternative}." if alternative else "Raise memory_budget.",
    )
