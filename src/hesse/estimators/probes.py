# SPDX-License-Identifier: Apache-2.0
"""Random probes, several at a time, and what products with them give.

Probes are rows here, (k, n): a basis grows by rows, and `A.inners` takes rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.errors import NonFiniteError
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
    check_finite(image, call)
    return image


def forms(A: LinearOperator, rows: Tensor, block_size: int, call: str) -> list[float]:
    """v'A v for every row v; one by one where the operator may know a shorter way than A v."""
    if block_size == 1:
        values = [A._curvature(row) for row in rows]
        check_finite(torch.tensor(values), call)
        return values
    image = products(A, rows, block_size, call)
    return [A.inner(row, product) for row, product in zip(rows, image, strict=True)]


def gram(A: LinearOperator, left: Tensor, right: Tensor) -> Tensor:
    """The inner products of the rows of `left` with those of `right`, (j, k), in float64."""
    if len(right) == 0 or len(left) == 0:
        return torch.zeros(len(left), len(right), dtype=torch.float64)
    columns = [A.inners(left, row) for row in right]
    return torch.stack(columns, dim=1).to("cpu", torch.float64)


def check_finite(value: Tensor, call: str) -> None:
    """Raise for NaN or Inf in products."""
    if not bool(torch.isfinite(value).all()):
        raise NonFiniteError(
            call,
            expected="finite products",
            got="NaN or Inf in a product with a random vector",
            remedy="Check the operator with hesse.testing.check_operator.",
        )
