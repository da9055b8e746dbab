# SPDX-License-Identifier: Apache-2.0
"""Where eigenproblems start: what was given, and random vectors beside it."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.errors import ArgumentError, check_count
from hesse.operators.algebra import LinearOperator
from hesse.vectors.space import Tree


def given_block(A: LinearOperator, v0: Tree | None, call: str) -> Tensor:
    """v0 as a block (n, j)."""
    if v0 is None:
        return torch.empty(A.shape[1], 0, dtype=A.dtype, device=A.device)
    if isinstance(v0, Tensor) and v0.ndim == 2 and not A.domain.is_point(v0):
        return A.domain.check_vector(v0, call=call, what="v0", ndim=2).detach()
    return A.domain.enter(v0, call=call, what="v0")[0][:, None]


def starting_block(
    A: LinearOperator,
    given: Tensor,
    block_size: int | None,
    generator: torch.Generator | None,
    call: str,
) -> Tensor:
    """The starting block, shape (n, b)."""
    b = max(1, given.shape[1])
    if block_size is not None:
        b = check_count("block_size", block_size, 1, call)
    if not max(1, given.shape[1]) <= b <= A.shape[0]:
        raise ArgumentError(
            call,
            expected=f"block_size from {max(1, given.shape[1])} to {A.shape[0]}",
            got=str(b),
            remedy="Leave it out for a block like v0, or for a single vector.",
        )
    if b == 1 and given.shape[1] == 0:
        return A.domain.gaussian(generator)[:, None]
    more = [A.domain.gaussian(generator) for _ in range(b - given.shape[1])]
    return torch.stack([*given.T, *more], dim=1)
