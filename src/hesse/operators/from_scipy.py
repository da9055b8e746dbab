# SPDX-License-Identifier: Apache-2.0
"""SciPy's sparse matrices and linear operators as operators of Hesse; products run on the CPU."""

from __future__ import annotations

import sys
from typing import Any

import numpy
from torch import Tensor

from hesse.errors import DtypeError, OperatorError
from hesse.operators.algebra import LinearOperator
from hesse.vectors.arrays import as_array, as_tensor
from hesse.vectors.space import Space


class ScipyMatrix(LinearOperator):
    """A sparse matrix of SciPy."""

    def __init__(self, matrix: Any, *, symmetric: bool) -> None:
        super().__init__(*_spaces(matrix), symmetric=symmetric)
        self.matrix = matrix

    def _matvec(self, v: Tensor) -> Tensor:
        return as_tensor(self.matrix @ as_array(v))

    def _rmatvec(self, u: Tensor) -> Tensor:
        return as_tensor(self.matrix.T @ as_array(u))

    def _matmat(self, block: Tensor) -> Tensor:
        return self._matvec(block)

    def _rmatmat(self, block: Tensor) -> Tensor:
        return self._rmatvec(block)

    def _diagonal(self) -> Tensor:
        return as_tensor(self.matrix.diagonal())

    def to_dense(self) -> Tensor:
        """The matrix as a tensor."""
        return as_tensor(self.matrix.toarray())


class ScipyFunction(LinearOperator):
    """A linear operator of SciPy."""

    def __init__(self, operator: Any, *, symmetric: bool) -> None:
        super().__init__(*_spaces(operator), symmetric=symmetric)
        self.operator = operator

    def _matvec(self, v: Tensor) -> Tensor:
        return as_tensor(self.operator.matvec(as_array(v))).to(self.dtype)

    def _rmatvec(self, u: Tensor) -> Tensor:
        if self.symmetric:
            return self._matvec(u)
        try:
            product = self.operator.rmatvec(as_array(u))
        except NotImplementedError as error:
            raise OperatorError(
                expected="an operator with an adjoint",
                got="a SciPy operator without rmatvec",
                remedy="Give it rmatvec=, or hesse.aslinearoperator symmetric=True if A = A'.",
            ) from error
        return as_tensor(product).to(self.dtype)

    def _matmat(self, block: Tensor) -> Tensor:
        return as_tensor(self.operator.matmat(as_array(block))).to(self.dtype)


def from_scipy(a: Any, symmetric: bool | None) -> LinearOperator | None:
    """A sparse matrix or operator of SciPy as an operator; None for everything else."""
    if isinstance(a, _type_of("scipy.sparse.linalg", "LinearOperator")):
        return ScipyFunction(a, symmetric=bool(symmetric))
    sparse = sys.modules.get("scipy.sparse")
    if sparse is None or not sparse.issparse(a):
        return None
    rows = a.tocsr()
    rows = rows.astype(_precision(rows.dtype), copy=False)
    return ScipyMatrix(rows, symmetric=_is_symmetric(rows) if symmetric is None else symmetric)


def _type_of(module: str, name: str) -> Any:
    """A class of a module if that is loaded: without it there are no objects of the class."""
    return getattr(sys.modules.get(module), name, ())


def _spaces(a: Any) -> tuple[Space, Space]:
    rows, columns = a.shape
    dtype = as_tensor(numpy.empty(0, _precision(a.dtype))).dtype
    return Space.flat(columns, dtype), Space.flat(rows, dtype)


def _precision(dtype: Any) -> Any:
    """The dtype of the vectors: at least float32."""
    if numpy.dtype(dtype).kind != "f":
        raise DtypeError(
            expected="A of a real floating-point dtype",
            got=str(dtype),
            remedy="Convert it with .astype('float64').",
        )
    return numpy.result_type(dtype, numpy.float32)


def _is_symmetric(matrix: Any) -> bool:
    """Whether a sparse matrix is symmetric up to rounding, as `dense_operator` decides it."""
    if matrix.shape[0] != matrix.shape[1]:
        return False
    size = abs(matrix)
    largest = numpy.maximum(size.max(axis=0).toarray(), size.max(axis=1).toarray().T).ravel()
    difference = (matrix - matrix.T).tocoo()
    scale = numpy.sqrt(largest)
    allowed = 8 * numpy.finfo(matrix.dtype).eps * scale[difference.row] * scale[difference.col]
    return bool((abs(difference.data) <= allowed).all())
