# SPDX-License-Identifier: Apache-2.0
"""Gram-Schmidt, again where much was removed: twice is enough (Parlett 1998, section 6.9)."""

from __future__ import annotations

from torch import Tensor

from hesse.operators.base import LinearOperator
from hesse.vectors import norm

# A vector that keeps less of its length is orthogonalised a second time (Daniel et al. 1976).
KEPT = 0.7


def components(A: LinearOperator, basis: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """A row, or rows, without what they have in the basis, and that: (j,) or (j, k), float64."""
    rest, first = _remove(A, basis, rows)
    removed = first.double().norm(dim=0).reshape(-1)
    left = [norm(row) for row in rest.reshape(-1, rest.shape[-1])]
    if all(r**2 > KEPT**2 * (r**2 + h**2) for r, h in zip(left, removed.tolist(), strict=True)):
        return rest, first.double().cpu()
    rest, second = _remove(A, basis, rest)
    return rest, (first.double() + second.double()).cpu()


def _remove(A: LinearOperator, basis: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    inners = A.inners(basis, rows)
    return rows - (inners.mT if inners.ndim == 2 else inners) @ basis, inners
