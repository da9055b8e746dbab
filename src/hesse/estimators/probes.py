# SPDX-License-Identifier: Apache-2.0
"""Random probes, several at a time, and what products with them give.

Probes are rows here, (k, n): a basis grows by rows, and `A.inners` takes rows.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor

from hesse.operators.algebra import LinearOperator
from hesse.vectors.rows import stacked
from hesse.vectors.space import unshared


def signs(A: LinearOperator, k: int, generator: torch.Generator | None) -> Tensor:
    """k vectors of random signs."""
    return stacked(k, (A.domain.rademacher(generator) for _ in range(k)))


def on_the_sphere(A: LinearOperator, k: int, generator: torch.Generator | None) -> Tensor:
    """k uniformly random vectors of norm sqrt(n)."""
    rows = stacked(k, (A.domain.gaussian(generator) for _ in range(k)))
    for row in rows:
        row *= (A.shape[1] / A.domain.inner(row, row)) ** 0.5
    return rows


def products(A: LinearOperator, rows: Tensor, block_size: int, call: str) -> Tensor:
    """A v for every row v, as rows of their own, `block_size` of them at once."""
    if len(rows) <= block_size:
        return A._check_finite(unshared(A._matmat(rows.T).T, rows), call)
    blocks = (A._matmat(block.T).T for block in rows.split(block_size))
    return A._check_finite(stacked(len(rows), chain.from_iterable(blocks)), call)


def forms(A: LinearOperator, rows: Tensor, block_size: int, call: str) -> list[float]:
    """v'A v for every row v; one by one where the operator may know a shorter way than A v."""
    if block_size == 1:
        values = [A._curvature(row) for row in rows]
        A._check_finite(torch.tensor(values), call)
        return values
    image = products(A, rows, block_size, call)
    return [A.domain.inner(row, product) for row, product in zip(rows, image, strict=True)]
