# SPDX-License-Identifier: Apache-2.0
"""Random probes, several at a time, and their products.

Probes are the rows of a tensor (k, n): a basis grows by rows, and `Space.inners` takes rows.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor

from hesse.operators.algebra import LinearOperator
from hesse.operators.checks import check_finite_products
from hesse.vectors.rows import stacked
from hesse.vectors.space import Space, unshared


def signs(space: Space, k: int, generator: torch.Generator | None) -> Tensor:
    """k vectors of random signs."""
    return stacked(k, (space.rademacher(generator) for _ in range(k)))


def on_the_sphere(space: Space, k: int, generator: torch.Generator | None) -> Tensor:
    """k vectors, uniformly random on the sphere of radius sqrt(n)."""
    rows = stacked(k, (space.gaussian(generator) for _ in range(k)))
    for row in rows:
        row *= (space.n / space.inner(row, row)) ** 0.5
    return rows


def products(A: LinearOperator, rows: Tensor, block_size: int) -> Tensor:
    """A v for every row v, as rows in memory of their own, `block_size` products at once."""
    if len(rows) <= block_size:
        return check_finite_products(A, unshared(A._matmat(rows.T).T, rows))
    blocks = (A._matmat(block.T).T for block in rows.split(block_size))
    return check_finite_products(A, stacked(len(rows), chain.from_iterable(blocks)))


def quadratic_forms(A: LinearOperator, rows: Tensor, block_size: int) -> list[float]:
    """v'A v for every row v; one by one where the operator may compute it without A v."""
    if block_size == 1:
        values = [A._curvature(row) for row in rows]
        check_finite_products(A, torch.tensor(values))
        return values
    images = products(A, rows, block_size)
    return A.domain.inner_pairs(*zip(rows, images, strict=True))
