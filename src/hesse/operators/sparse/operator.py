# SPDX-License-Identifier: Apache-2.0
"""`SparseOperator`: a symmetric sparse matrix, which is factorised where its inverse is wanted."""

from __future__ import annotations

import warnings
from functools import cached_property
from typing import Any

import scipy.sparse as sp
import torch
from torch import Tensor

from hesse.boundary import public
from hesse.errors import OperatorError
from hesse.operators.algebra import LinearOperator
from hesse.operators.dense_inverse import inverse_norm
from hesse.operators.sparse.factorisation import Factorisation, Inertia, factorise
from hesse.operators.structure import diagonal_of
from hesse.vectors.arrays import as_array, as_tensor
from hesse.vectors.places import Places, Where
from hesse.vectors.space import Space


class SparseOperator(LinearOperator):
    """A symmetric matrix in compressed rows, on a given space.

    Args:
        space: of the vectors.
        matrix: a symmetric `scipy.sparse.csr_array` of the dtype of the vectors.
    """

    def __init__(self, space: Space, matrix: Any) -> None:
        super().__init__(space, symmetric=True)
        self.matrix = matrix

    def _matvec(self, v: Tensor) -> Tensor:
        if v.device.type != "cpu":
            return self._on_device @ v
        return as_tensor(self.matrix @ as_array(v))

    def _matmat(self, block: Tensor) -> Tensor:
        return self._matvec(block)

    def _diagonal(self) -> Tensor:
        return as_tensor(self.matrix.diagonal()).to(self.device)

    def _trace(self) -> float:
        """The sum of the diagonal."""
        return float(self.matrix.diagonal().sum(dtype="float64"))

    def _plus_diagonal(self, D: LinearOperator) -> LinearOperator:
        space, d = self.domain.common(D.domain), as_array(diagonal_of(D).cpu())
        return SparseOperator(space, (self.matrix + sp.diags_array(d)).tocsr())

    def _principal(self, space: Space, where: Where) -> LinearOperator:
        """A sparse matrix too."""
        assert not isinstance(where, Places)  # a matrix is one of whole vectors
        rows = as_array(where.cpu()) if isinstance(where, Tensor) else where
        return SparseOperator(space, self.matrix[rows][:, rows])

    def _inverse(self) -> LinearOperator | None:
        return self._exact_inverse

    def _logdet(self) -> tuple[float, float] | None:
        """The sign of the determinant and the logarithm of its absolute value, from the factors."""
        inverse = self._exact_inverse
        return None if inverse is None else (inverse.factors.sign, inverse.factors.logabs)

    def _num_negative(self) -> int | None:
        inverse = self._exact_inverse
        return None if inverse is None else inverse._num_negative()

    @property
    def is_structured(self) -> bool:
        return True

    def _expression(self) -> str:
        return "SparseOperator"

    @property
    @public("{self}.inertia", nested=False)
    def inertia(self) -> Inertia:
        """How many eigenvalues are positive and how many negative, from the factors.

        Cost: a factorisation, once.

        Raises:
            OperatorError: the matrix is singular, or its factors tell nothing about the signs.
        """
        inverse = self._exact_inverse
        if inverse is None or inverse.factors.inertia is None:
            raise OperatorError(
                expected="a matrix that can be factorised with pivots from its diagonal",
                got="a singular one" if inverse is None else "one with which that is not stable",
                remedy="Add a small multiple of the identity, A + c * hesse.identity_operator(n).",
            )
        return inverse.factors.inertia

    def to_dense(self) -> Tensor:
        """The matrix as a tensor."""
        return as_tensor(self.matrix.toarray()).to(self.device)

    def to_scipy(self) -> Any:
        """The matrix as a `scipy.sparse.csr_array`, a copy."""
        return self.matrix.copy()

    def __reduce__(self) -> Any:  # the factors are made again where they are wanted
        return SparseOperator, (self.domain, self.matrix)

    @cached_property
    def _exact_inverse(self) -> SparseInverse | None:
        """A^-1; None if A is singular to working precision."""
        factors = factorise(self.matrix)
        if factors is None:
            return None
        inverse = SparseInverse(self.domain, factors)
        condition = float(abs(self.matrix).sum(axis=0).max()) * inverse_norm(inverse)
        return inverse if condition * torch.finfo(torch.float64).eps < 0.1 else None

    @cached_property
    def _on_device(self) -> Tensor:
        """The matrix where the vectors are."""
        parts = (self.matrix.indptr, self.matrix.indices, self.matrix.data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls the layout a beta
            rows, columns, values = map(torch.from_numpy, parts)
            return torch.sparse_csr_tensor(rows, columns, values, self.shape).to(self.device)


class SparseInverse(LinearOperator):
    """A^-1 of a symmetric sparse matrix, by its factors, on the CPU and in float64."""

    def __init__(self, space: Space, factors: Factorisation) -> None:
        super().__init__(space, symmetric=True)
        self.factors = factors

    def _matvec(self, v: Tensor) -> Tensor:
        solution = self.factors.solve(as_array(v.double().cpu()))
        return as_tensor(solution).to(v)

    def _matmat(self, block: Tensor) -> Tensor:
        return self._matvec(block)

    def _logdet(self) -> tuple[float, float]:
        """That of A with the other sign."""
        return self.factors.sign, -self.factors.logabs

    def _num_negative(self) -> int | None:
        inertia = self.factors.inertia
        return None if inertia is None else inertia.negative

    @property
    def is_structured(self) -> bool:
        return True
