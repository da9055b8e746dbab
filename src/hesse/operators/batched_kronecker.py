# SPDX-License-Identifier: Apache-2.0
"""Kronecker products of many pairs of matrices of one size, side by side on the diagonal.

A layer has one pair, a grouped convolution and a layer of experts one for each group or expert.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hesse.operators.algebra import LinearOperator
from hesse.operators.eigenbasis import eigenbasis
from hesse.operators.rotated_diagonal import RotatedDiagonal
from hesse.operators.structure import diagonal_of
from hesse.vectors.matmul import matmul
from hesse.vectors.space import Space


@dataclass(frozen=True)
class Factors:
    """A square matrix for each group: dense (groups, p, p), or diagonal (groups, p)."""

    entries: Tensor

    @property
    def is_diagonal(self) -> bool:
        """Whether only the diagonals are held."""
        return self.entries.ndim == 2

    @property
    def size(self) -> int:
        """The p of p x p matrices."""
        return self.entries.shape[-1]

    @property
    def diagonal(self) -> Tensor:
        """The entries (groups, p) on the diagonals."""
        return self.entries if self.is_diagonal else self.entries.diagonal(dim1=-2, dim2=-1)

    @property
    def trace(self) -> Tensor:
        """The traces, shape (groups,)."""
        return self.diagonal.sum(-1)

    @property
    def T(self) -> Factors:
        """The adjoints."""
        return self if self.is_diagonal else Factors(self.entries.mT)

    def times(self, X: Tensor) -> Tensor:
        """F X for X (..., groups, p, k)."""
        if self.is_diagonal:
            return self.entries[..., None] * X
        if len(self.entries) == 1:  # one matrix product, not a batch of one
            return matmul(self.entries[0], X[..., 0, :, :])[..., None, :, :]
        return self.entries @ X

    def times_adjoint(self, X: Tensor) -> Tensor:
        """X F' for X (..., groups, k, p)."""
        if self.is_diagonal:
            return X * self.entries[:, None]
        if len(self.entries) == 1:
            return matmul(X[..., 0, :, :], self.entries[0].T)[..., None, :, :]
        return X @ self.entries.mT

    def plus(self, shift: Tensor) -> Factors:
        """F + shift I, with one number for each group."""
        if self.is_diagonal:
            return Factors(self.entries + shift[:, None])
        eye = torch.eye(self.size, dtype=self.entries.dtype, device=self.entries.device)
        return Factors(self.entries + shift[:, None, None] * eye)

    def eigen(self) -> tuple[Tensor, Factors]:
        """Eigenvalues (groups, p), and eigenvectors; ones stand for the identity."""
        if self.is_diagonal:
            return self.entries, Factors(torch.ones_like(self.entries))
        values, vectors = eigenbasis(self.entries)
        return values, Factors(vectors)

    def cholesky(self) -> Factors | None:
        """The Cholesky factors of positive definite matrices; None if one is singular."""
        if self.is_diagonal:
            return Factors(self.entries.sqrt()) if bool((self.entries > 0).all()) else None
        L, info = torch.linalg.cholesky_ex(self.entries)
        pivots = L.diagonal(dim1=-2, dim2=-1) ** 2
        eps = torch.finfo(L.dtype).eps
        regular = not bool(info.any()) and bool(
            (pivots.amin(-1) > 10 * eps * pivots.amax(-1)).all()
        )
        return Factors(L) if regular else None

    def inverse(self) -> Factors | None:
        """The inverses of positive definite matrices; None if one is singular."""
        L = self.cholesky()
        if L is None:
            return None
        return Factors(1.0 / self.entries if L.is_diagonal else torch.cholesky_inverse(L.entries))


class BatchedKronecker(LinearOperator):
    """diag(L_1 x R_1, ..., L_k x R_k) + c I, on flat vectors of matrices (k, p, q) row by row.

    Args:
        left, right: the matrices L and R, all symmetric or all orthogonal.
        symmetric: which of the two.
        shift: c.
    """

    def __init__(
        self, left: Factors, right: Factors, *, symmetric: bool, shift: float = 0.0
    ) -> None:
        groups = len(left.entries)
        n = groups * left.size * right.size
        super().__init__(
            Space.flat(n, left.entries.dtype, left.entries.device), symmetric=symmetric
        )
        self.left, self.right, self.shift = left, right, shift
        self._shape = groups, left.size, right.size
        self._unshifted: BatchedKronecker | None = None

    def _matvec(self, v: Tensor) -> Tensor:
        product = _apply(self.left, self.right, v.view(self._shape)).reshape(-1)
        return product.add_(v, alpha=self.shift) if self.shift else product

    def _rmatvec(self, u: Tensor) -> Tensor:
        if self.symmetric:
            return self._matvec(u)
        return _apply(self.left.T, self.right.T, u.view(self._shape)).reshape(-1)

    def _matmat(self, block: Tensor) -> Tensor:
        product = self._apply_block(self.left, self.right, block)
        return product + self.shift * block if self.shift else product

    def _rmatmat(self, block: Tensor) -> Tensor:
        if self.symmetric:
            return self._matmat(block)
        return self._apply_block(self.left.T, self.right.T, block)

    def _apply_block(self, left: Factors, right: Factors, block: Tensor) -> Tensor:
        k = block.shape[1]
        X = block.T.reshape(k, *self._shape)
        return _apply(left, right, X).reshape(k, -1).T

    def shifted(self, c: float) -> BatchedKronecker:
        """This symmetric matrix + c I; eigenvectors are computed once for all shifts."""
        result = BatchedKronecker(self.left, self.right, symmetric=True, shift=self.shift + c)
        result._unshifted = self._unshifted or self
        return result

    @cached_property
    def rotated(self) -> RotatedDiagonal:
        """The same symmetric matrix by its eigenvalues and eigenvectors."""
        if self._unshifted is not None:
            known = self._unshifted.rotated
            shift = self.shift - self._unshifted.shift
            return RotatedDiagonal(self.domain, known.Q, known.w + shift, self.shift)
        (a, P), (b, Q) = self.left.eigen(), self.right.eigen()
        vectors = BatchedKronecker(P, Q, symmetric=False)
        values = (a[:, :, None] * b[:, None, :]).reshape(-1)
        return RotatedDiagonal(self.domain, vectors, values + self.shift, self.shift)

    def _inverse(self) -> LinearOperator | None:
        if not self.symmetric:
            return BatchedKronecker(self.left.T, self.right.T, symmetric=False)
        if self.shift:
            return self.rotated._inverse()
        left, right = self.left.inverse(), self.right.inverse()
        if left is None or right is None:
            return None
        return BatchedKronecker(left, right, symmetric=True)

    def _diagonal(self) -> Tensor:
        product = self.left.diagonal[:, :, None] * self.right.diagonal[:, None, :]
        return product.reshape(-1) + self.shift

    def _trace(self) -> float:
        product = self.left.trace.double() @ self.right.trace.double()
        return float(product) + self.shift * self.domain.n

    def _plus_diagonal(self, D: LinearOperator) -> LinearOperator | None:
        d = diagonal_of(D)
        if not self.symmetric or self.domain.any(d != d[0]):
            return None
        return self.shifted(float(d[0]))

    def _function(self, f: Callable[[Tensor], Tensor]) -> LinearOperator | None:
        """f(A) for a symmetric A."""
        if not self.symmetric:
            return None
        return self.rotated._function(f)

    def _eigenvalues(self) -> Tensor | None:
        return self.rotated._eigenvalues() if self.symmetric else None

    def _eigen(self) -> tuple[LinearOperator, Tensor] | None:
        return self.rotated._eigen() if self.symmetric else None

    def _logdet(self) -> tuple[float, float] | None:
        if not self.symmetric:
            return None
        if self.shift:
            return self.rotated._logdet()
        L, R = self.left.cholesky(), self.right.cholesky()
        if L is None or R is None:
            return 0.0, -math.inf
        left, right = (float(side.diagonal.double().log().sum()) for side in (L, R))
        return 1.0, 2.0 * (R.size * left + L.size * right)

    def _squared_entries(self) -> BatchedKronecker | None:
        """Of a product without shift."""
        if self.shift:
            return None
        left, right = (_squares(side) for side in (self.left, self.right))
        return BatchedKronecker(left, right, symmetric=self.symmetric)

    @property
    def is_structured(self) -> bool:
        return True

    @property
    def is_diagonal(self) -> bool:
        return self.left.is_diagonal and self.right.is_diagonal


def _squares(side: Factors) -> Factors:
    return Factors(side.entries * side.entries)


def _apply(left: Factors, right: Factors, X: Tensor) -> Tensor:
    """L X R' for X (..., groups, p, q)."""
    return right.times_adjoint(left.times(X))
