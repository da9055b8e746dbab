# SPDX-License-Identifier: Apache-2.0
"""Gram-Schmidt through the operator's inner product: a basis that grows by blocks of rows.

The blocks are never joined. Where rows grow in one tensor, each growth copies all that there were,
and holds them twice meanwhile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.krylov.gram_schmidt import orthogonalise
from hesse.operators.algebra import LinearOperator
from hesse.vectors.inner_products import norm


def project_out(A: LinearOperator, basis: list[Tensor], rows: Tensor) -> Tensor:
    """The rows without their components in the basis."""
    if not basis:
        return rows
    rest = rows.clone()
    orthogonalise(A, basis, rest)
    return rest


def extend(
    A: LinearOperator, basis: list[Tensor], rows: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """The next block of the basis, and coordinates R of the rows in all of it: R'Q = rows, R upper.

    The block takes the place of the rows. A row that lies in the basis to rounding brings a random
    direction, with that rounding error as its coordinate: R stays regular.
    """
    j, rows = sum(map(len, basis)), rows.contiguous()
    R = torch.zeros(j + len(rows), len(rows), dtype=torch.float64)
    for start in range(0, len(rows), _PANEL):
        panel, known = rows[start : start + _PANEL], [*basis, rows[:start]]
        least = [torch.finfo(A.dtype).eps * norm(row) for row in panel]
        R[: j + start, start : start + len(panel)] = orthogonalise(A, known, panel)
        for i, row in enumerate(panel):
            before, column = [*known, panel[:i]], R[:, start + i]
            column[: j + start + i] += _remove_panel(A, before, row)
            column[j + start + i] = _normalise(A, before, row, least[i], generator)
    return rows, R


def _remove_panel(A: LinearOperator, before: list[Tensor], row: Tensor) -> Tensor:
    """Take from a row what it has in the last block, and that; what it had in others was taken."""
    length, others = norm(row), sum(map(len, before[:-1]))
    h = torch.cat([torch.zeros(others).double(), orthogonalise(A, before[-1:], row)])
    if norm(row) < _KEPT * length:  # what was left along the others weighs more now
        h += orthogonalise(A, before, row)
    return h


def _normalise(
    A: LinearOperator,
    basis: list[Tensor],
    row: Tensor,
    least: float,
    generator: torch.Generator | None,
) -> float:
    """Give a row length 1; the length it had. One too short becomes a new direction."""
    length = norm(row)
    if length > 10 * least:
        row /= length
        return length
    row.copy_(A.domain.gaussian(generator))
    orthogonalise(A, basis, row)
    row /= norm(row)
    return max(least, _TINY)


_PANEL = 16  # rows that are orthogonalised against all earlier ones together
_KEPT = 0.1
_TINY = 1e-100  # the coordinate of a row of zeros
