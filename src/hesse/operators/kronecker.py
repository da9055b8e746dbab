# SPDX-License-Identifier: Apache-2.0
"""Kronecker products: a product with A x B is one with A and one with B, never with both."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.operators.algebra import LinearOperator
from hesse.operators.dense import aslinearoperator
from hesse.operators.kept import kept
from hesse.operators.rotated_diagonal import RotatedDiagonal
from hesse.vectors.space import Space


class KroneckerOperator(LinearOperator):
    """A x B, on flat vectors."""

    def __init__(self, a: LinearOperator, b: LinearOperator) -> None:
        (m, n), (p, q) = a.shape, b.shape
        rows, columns = (Space.flat(size, a.dtype, a.device) for size in (m * p, n * q))
        rows.common(Space.flat(m * p, b.dtype, b.device))
        super().__init__(columns, rows, symmetric=a.symmetric and b.symmetric)
        self.a, self.b = a, b

    def _matvec(self, v: Tensor) -> Tensor:
        return self._matmat(v[:, None])[:, 0]

    def _matmat(self, block: Tensor) -> Tensor:
        """A X B' for the matrix X that each column holds row by row."""
        (m, n), (p, q), k = self.a.shape, self.b.shape, block.shape[1]
        right = self.b._matmat(block.reshape(n, q, k).transpose(0, 1).reshape(q, n * k))
        left = self.a._matmat(right.reshape(p, n, k).transpose(0, 1).reshape(n, p * k))
        return left.reshape(m * p, k)

    def _rmatvec(self, u: Tensor) -> Tensor:
        return self._rmatmat(u[:, None])[:, 0]

    def _rmatmat(self, block: Tensor) -> Tensor:
        return KroneckerOperator(self.a.T, self.b.T)._matmat(block)

    def _inverse(self) -> LinearOperator | None:
        a, b = self.a._inverse(), self.b._inverse()
        return None if a is None or b is None else KroneckerOperator(a, b)

    def _diagonal(self) -> Tensor | None:
        if not self._is_square:
            return None
        a, b = self.a._diagonal(), self.b._diagonal()
        return None if a is None or b is None else torch.kron(a, b)

    @property
    def _is_square(self) -> bool:
        return all(rows == columns for rows, columns in (self.a.shape, self.b.shape))

    def _trace(self) -> float | None:
        if not self._is_square:
            return None
        a, b = self.a._trace(), self.b._trace()
        return None if a is None or b is None else a * b

    def _logdet(self) -> tuple[float, float] | None:
        """det(A x B) = det(A)^p det(B)^m."""
        a, b = (self.a._logdet(), self.b._logdet()) if self._is_square else (None, None)
        if a is None or b is None:
            return None
        m, p = self.a.domain.n, self.b.domain.n
        return a[0] ** p * b[0] ** m, p * a[1] + m * b[1]

    @kept
    def _rotated(self) -> RotatedDiagonal | None:
        """By the eigenvectors of A x those of B; factorised once."""
        a, b = (self.a._eigen(), self.b._eigen()) if self.symmetric else (None, None)
        if a is None or b is None:
            return None
        (P, v), (Q, w) = a, b
        return RotatedDiagonal(self.domain, KroneckerOperator(P, Q), torch.kron(v, w))

    def _eigen(self) -> tuple[LinearOperator, Tensor] | None:
        return None if (rotated := self._rotated()) is None else rotated._eigen()

    def _eigenvalues(self) -> Tensor | None:
        if (rotated := self._rotated()) is not None:
            return rotated._eigenvalues()
        a, b = self.a._eigenvalues(), self.b._eigenvalues()
        return None if a is None or b is None else torch.kron(a, b)

    def _function(self, f: Callable[[Tensor], Tensor]) -> LinearOperator | None:
        return None if (rotated := self._rotated()) is None else rotated._function(f)

    def _plus_diagonal(self, D: LinearOperator) -> LinearOperator | None:
        return None if (rotated := self._rotated()) is None else rotated._plus_diagonal(D)

    def _squared_entries(self) -> LinearOperator | None:
        a, b = self.a._squared_entries(), self.b._squared_entries()
        return None if a is None or b is None else KroneckerOperator(a, b)

    @property
    def is_structured(self) -> bool:
        return self._is_square

    @property
    def is_diagonal(self) -> bool:
        return self.a.is_diagonal and self.b.is_diagonal


@public("hesse.kronecker_operator({A}, {B})", nested=False)
def kronecker_operator(A: LinearOperator | Tensor, B: LinearOperator | Tensor) -> KroneckerOperator:
    r"""The Kronecker product of two operators or matrices, on flat vectors.

    $$ (A \otimes B) \operatorname{vec}(X) = \operatorname{vec}(A X B^T) $$

    with vec(X) the entries of X row by row, as X.reshape(-1) gives them and torch.kron has it; the
    other convention, column by column, is that of B x A.

    Args:
        A: operator of shape (m, n), or a matrix.
        B: operator of shape (p, q), or a matrix; the result has shape (m p, n q).

    Its inverse is A^-1 x B^-1; with c I added, for two symmetric matrices, that of their
    eigenvalues' products plus c.

    Cost: for one product, n products with B and p with A, each taken as one block.

    Raises:
        HesseError: factors of different dtypes or devices.

    References: Van Loan 2000, doi:10.1016/S0377-0427(00)00393-9.

    >>> A = kronecker_operator(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), 2 * torch.eye(2))
    >>> A @ torch.tensor([1.0, 2.0, 3.0, 4.0])
    tensor([6., 8., 2., 4.])
    """
    return KroneckerOperator(aslinearoperator(A), aslinearoperator(B))
