# SPDX-License-Identifier: Apache-2.0
"""Where eigenproblems start: from given vectors, and random ones."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.errors import ArgumentError
from hesse.operators.algebra import LinearOperator
from hesse.vectors.arrays import as_tensor
from hesse.vectors.space import Tree


def random_start(A: LinearOperator, generator: torch.Generator | None) -> Tensor:
    """A random vector to start from, (n,).

    Every second entry of `Space.gaussian` has the other sign. Data that were drawn from a generator
    of the same seed have its vectors as their rows: X[0] has no component in the kernel of X'X, and
    as a start it would find none of the zero eigenvalues.
    """
    return A.domain.alternate(A.domain.gaussian(generator))


def given_block(A: LinearOperator, v0: Tree | None) -> Tensor:
    """v0 as a block (n, j)."""
    if v0 is None:
        return torch.empty(A.domain.size, 0, dtype=A.dtype, device=A.device)
    given = as_tensor(v0, A.device)
    if isinstance(given, Tensor) and given.ndim == 2 and not A.domain.is_point(given):
        return A.domain.check_vector(given, what="v0", ndim=2).detach()
    return A.domain.enter(v0, what="v0")[0][:, None]


def starting_block(
    A: LinearOperator,
    given: Tensor,
    block_size: int | None,
    generator: torch.Generator | None,
) -> Tensor:
    """The starting block, shape (n, b)."""
    least = max(1, given.shape[1])
    b = least if block_size is None else block_size
    if not least <= b <= A.domain.n:
        raise ArgumentError(
            expected=f"block_size from {least} to {A.domain.n}",
            got=str(b),
            remedy="Leave it out for a block like v0, or for a single vector.",
        )
    if b == 1 and given.shape[1] == 0:
        return random_start(A, generator)[:, None]
    more = [random_start(A, generator) for _ in range(b - given.shape[1])]
    return torch.stack([*given.T, *more], dim=1)
