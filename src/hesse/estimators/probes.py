# SPDX-License-Identifier: Apache-2.0
"""Random probes, several at a time, and what products with them give.

Probes are rows here, (k, n): a basis grows by rows, and `A.inners` takes rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.operators.base import LinearOperator
from hesse.vectors import gaussian, rademacher


def signs(A: LinearOperator, k: int, generator: torch.Generator | None) -> Tensor:
    """k vectors of random signs."""
    return torch.stack([rademacher(A.domain, generator) for _ in range(k)])


def on_the_sphere(A: LinearOperator, k: int, generator: torch.Generator | None) -> Tensor:
    """k uniformly random vectors of norm sqrt(n)."""
    rows = [gaussian(A.domain, generator) for _ in range(k)]
    return torch.stack([(A.shape[1] / A.inner(row, row)) ** 0.5 * row for row in rows])


def products(A: LinearOperator, rows: Tensor, block_size: int, call: str) -> Tensor:
    """A v for every row v, as rows, `block_size` of them at once."""
    blocks = [A._matmat(block.T).T for block in rows.split(block_size)]
    image = torch.cat(blocks) if len(blocks) > 1 else blocks[0]
    return A._check_finite(image, call)


def forms(A: LinearOperator, rows: Tensor, block_size: int, call: str) -> list[float]:
    """v'A v for every row v; one by one where the operator may know a shorter way than A v."""
    if block_size == 1:
        values = [A._curvature(row) for row in rows]
        A._check_finite(torch.tensor(values), call)
        return values
    image = products(A, rows, block_size, call)
    return [A.inner(row, product) for row, product in zip(rows, image, strict=True)]
