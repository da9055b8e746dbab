# SPDX-License-Identifier: Apache-2.0
"""Gram-Schmidt through the operator's inner product: a basis that grows by rows."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.krylov.gram_schmidt import components
from hesse.operators.base import LinearOperator
from hesse.vectors import gaussian, norm


def project_out(A: LinearOperator, basis: Tensor, rows: Tensor) -> Tensor:
    """The rows without their components in the basis."""
    return rows if len(basis) == 0 else components(A, basis, rows)[0]


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
    for start in range(0, k, _PANEL):
        before, stop = j + start, min(start + _PANEL, k)
        outside, R[:before, start:stop] = components(A, grown[:before], rows[start:stop])
        for i, row in enumerate(outside, start):
            least = torch.finfo(A.dtype).eps * norm(rows[i])
            rest, h = _outside(A, grown[: j + i], before, row)
            R[: j + i, i] += h
            grown[j + i], R[j + i, i] = _normalised(A, grown[: j + i], rest, least, generator)
    return grown, R


def _outside(A: LinearOperator, basis: Tensor, before: int, row: Tensor) -> tuple[Tensor, Tensor]:
    """A row without what it has in the basis, whose first rows `before` were removed already."""
    h = torch.zeros(len(basis), dtype=torch.float64)
    rest, h[before:] = components(A, basis[before:], row)
    if norm(rest) < _KEPT * norm(row):  # what was left along the first rows weighs more now
        rest, further = components(A, basis, rest)
        h += further
    return rest, h


def _normalised(
    A: LinearOperator,
    basis: Tensor,
    row: Tensor,
    least: float,
    generator: torch.Generator | None,
) -> tuple[Tensor, float]:
    """A row of length 1 and the length it had; a new direction in the place of one too short."""
    length = norm(row)
    if length <= 10 * least:
        return _new_direction(A, basis, generator), max(least, _TINY)
    return row / length, length


_PANEL = 16  # rows that are orthogonalised against all earlier ones together
_KEPT = 0.1
_TINY = 1e-100  # the coordinate of a row of zeros


def _new_direction(A: LinearOperator, basis: Tensor, generator: torch.Generator | None) -> Tensor:
    row, _ = components(A, basis, gaussian(A.domain, generator))
    return row / norm(row)
