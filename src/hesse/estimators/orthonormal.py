# SPDX-License-Identifier: Apache-2.0
"""Gram-Schmidt, twice, through the operator's inner product: a basis that grows by rows."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.krylov.gram_schmidt import components
from hesse.operators.base import LinearOperator
from hesse.vectors import gaussian, norm


def project_out(A: LinearOperator, basis: Tensor, rows: Tensor) -> Tensor:
    """The rows without their components in the basis."""
    if len(basis) == 0:
        return rows
    return torch.stack([components(A, basis, row)[0] for row in rows])


def extend(
    A: LinearOperator, basis: Tensor, rows: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """The basis with new rows, and coordinates R of the given rows in it: R'Q = rows, R upper.

    A row that lies in the basis to rounding brings a random direction, with that rounding error as
    its coordinate: R stays regular.
    """
    j, k = len(basis), len(rows)
    grown = torch.cat([basis, torch.empty_like(rows)])
    R = torch.zeros(j + k, k, dtype=torch.float64)
    for i, row in enumerate(rows):
        rest, R[: j + i, i] = components(A, grown[: j + i], row)
        least = torch.finfo(A.dtype).eps * norm(row)
        length = norm(rest)
        if length <= 10 * least:
            rest, length = _new_direction(A, grown[: j + i], generator), max(least, _TINY)
            grown[j + i] = rest
        else:
            grown[j + i] = rest / length
        R[j + i, i] = length
    return grown, R


_TINY = 1e-100  # the coordinate of a row of zeros


def _new_direction(A: LinearOperator, basis: Tensor, generator: torch.Generator | None) -> Tensor:
    row = gaussian(A.domain, generator)
    for _ in range(2):
        row = components(A, basis, row / norm(row))[0]
    return row / norm(row)
