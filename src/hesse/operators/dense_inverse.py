# SPDX-License-Identifier: Apache-2.0
"""The inverse of a matrix by triangular factors: Cholesky where that succeeds, else LU.

A matrix that is singular to working precision has no inverse: its condition number in the 1-norm,
estimated from a few solutions with the factors, must be below 0.1 / eps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.operators.algebra import LinearOperator
from hesse.vectors.space import Space

_MAX_STEPS = 5  # of the norm estimate, which nearly always ends after two (Higham 1988)


class CholeskyInverse(LinearOperator):
    """(L L')^-1."""

    def __init__(self, L: Tensor, space: Space) -> None:
        super().__init__(space, symmetric=True)
        self.L = L

    def _matvec(self, v: Tensor) -> Tensor:
        return self._matmat(v[:, None])[:, 0]

    def _matmat(self, block: Tensor) -> Tensor:
        return torch.cholesky_solve(block, self.L)


class LUInverse(LinearOperator):
    """(P L U)^-1."""

    def __init__(self, LU: Tensor, pivots: Tensor, space: Space, *, symmetric: bool) -> None:
        super().__init__(space, symmetric=symmetric)
        self.LU, self.pivots = LU, pivots

    def _matvec(self, v: Tensor) -> Tensor:
        return self._matmat(v[:, None])[:, 0]

    def _rmatvec(self, u: Tensor) -> Tensor:
        return self._rmatmat(u[:, None])[:, 0]

    def _matmat(self, block: Tensor) -> Tensor:
        return torch.linalg.lu_solve(self.LU, self.pivots, block)

    def _rmatmat(self, block: Tensor) -> Tensor:
        return torch.linalg.lu_solve(self.LU, self.pivots, block, adjoint=True)


def dense_inverse(matrix: Tensor, space: Space, symmetric: bool) -> LinearOperator | None:
    """The inverse of a square matrix, or None if it is singular to working precision.

    Cost: n^3 / 3 operations by Cholesky, 2 n^3 / 3 by LU; n^2 numbers.
    """
    inverse = _cholesky(matrix, space) if symmetric else None
    if inverse is None:
        LU, pivots, _ = torch.linalg.lu_factor_ex(matrix)
        inverse = LUInverse(LU, pivots, space, symmetric=symmetric)
    condition = float(matrix.abs().sum(dim=0).max()) * inverse_norm(inverse)
    return inverse if condition * torch.finfo(matrix.dtype).eps < 0.1 else None


def _cholesky(matrix: Tensor, space: Space) -> LinearOperator | None:
    L, info = torch.linalg.cholesky_ex(matrix)
    return CholeskyInverse(L, space) if int(info) == 0 else None


def inverse_norm(inverse: LinearOperator) -> float:
    """A lower bound, nearly always sharp, of the 1-norm (Hager 1984, doi:10.1137/0905023)."""
    n = inverse.domain.n
    x, norm = torch.full_like(inverse.domain.zeros(), 1 / n), 0.0
    for _ in range(_MAX_STEPS):
        y = inverse._matvec(x)
        norm = float(y.abs().sum())
        slope = inverse._rmatvec(torch.where(y < 0.0, -1.0, 1.0).to(y))
        steepest = slope.abs().argmax()
        if not bool(slope[steepest].abs() > slope @ x):  # also for NaN
            break
        x = torch.zeros_like(x)
        x[steepest] = 1.0
    return norm
