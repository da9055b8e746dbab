# SPDX-License-Identifier: Apache-2.0
"""Operators made from a matrix or from a function v -> A v."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy
import torch
from torch import Tensor

from hesse.boundary import public
from hesse.errors import OperatorError, ShapeError, StructureError, check_callable
from hesse.operators.algebra import LinearOperator
from hesse.operators.dense_inverse import dense_inverse
from hesse.operators.from_scipy import from_scipy
from hesse.operators.function import FunctionOperator
from hesse.operators.structure import diagonal_of
from hesse.operators.terms import Terms, of_matrix
from hesse.vectors.aliasing import num_writes
from hesse.vectors.arrays import as_tensor
from hesse.vectors.checks import check_constant
from hesse.vectors.places import Places, Where
from hesse.vectors.space import Space


class DenseOperator(LinearOperator):
    """A matrix as an operator, on flat vectors or on a given space."""

    def __init__(self, matrix: Tensor, *, symmetric: bool, space: Space | None = None) -> None:
        rows, columns = (
            Space.flat(size, matrix.dtype, matrix.device) if space is None else space
            for size in matrix.shape
        )
        super().__init__(columns, rows, symmetric=symmetric)
        self.matrix = matrix

    def _matvec(self, v: Tensor) -> Tensor:
        return self.matrix @ v

    def _rmatvec(self, u: Tensor) -> Tensor:
        return self.matrix.T @ u

    def _matmat(self, block: Tensor) -> Tensor:
        return self.matrix @ block

    def _rmatmat(self, block: Tensor) -> Tensor:
        return self.matrix.T @ block

    def _expand(self) -> Terms | None:
        return of_matrix(self.matrix, symmetric=self.symmetric)

    def to_dense(self) -> Tensor:
        """The matrix itself, as a copy."""
        return self.matrix.clone()

    def _written(self) -> Hashable:
        return num_writes(self.matrix)

    def _inverse(self) -> LinearOperator | None:
        rows, columns = self.shape
        return dense_inverse(self.matrix, self.domain, self.symmetric) if rows == columns else None

    def _diagonal(self) -> Tensor | None:
        rows, columns = self.shape
        return self.matrix.diagonal() if rows == columns else None

    def _logdet(self) -> tuple[float, float] | None:
        if self.shape[0] != self.shape[1]:
            return None
        sign, log = torch.linalg.slogdet(self.matrix.double())
        return float(sign), float(log)

    def _eigen(self) -> tuple[LinearOperator, Tensor] | None:
        if not self.symmetric:
            return None
        w, Q = torch.linalg.eigh(self.matrix)
        return DenseOperator(Q, symmetric=False, space=self.domain), w.double()

    def _eigenvalues(self) -> Tensor | None:
        return torch.linalg.eigvalsh(self.matrix).double() if self.symmetric else None

    def _squared_entries(self) -> LinearOperator:
        space = self.domain if self.domain == self.codomain else None
        return DenseOperator(self.matrix**2, symmetric=self.symmetric, space=space)

    def _principal(self, space: Space, where: Where) -> LinearOperator:
        assert not isinstance(where, Places)  # a matrix is one of whole vectors
        return DenseOperator(self.matrix[where][:, where], symmetric=self.symmetric, space=space)

    def _compressed(self, Q: Tensor) -> LinearOperator:
        matrix = Q.T @ self.matrix @ Q
        if self.symmetric:
            matrix = (matrix + matrix.T) / 2
        return DenseOperator(matrix, symmetric=self.symmetric)

    def _plus_diagonal(self, D: LinearOperator) -> LinearOperator:
        space = self.domain.common(D.domain)
        matrix = self.matrix + torch.diag(diagonal_of(D))
        return DenseOperator(matrix, symmetric=self.symmetric, space=space)


@public("hesse.dense_operator(matrix)", nested=False)
def dense_operator(matrix: Any) -> DenseOperator:
    """The operator of a matrix of shape (m, n); symmetric if the matrix is, up to rounding.

    Vectors are of its dtype, but of float32 at least. The matrix is not copied (unless it is in a
    lower precision), as in `torch.from_numpy` and SciPy: writing into it changes the operator, but
    not its tag `symmetric`.

    Args:
        matrix: a tensor or a NumPy array of shape (m, n). A sparse matrix or a linear operator of
            SciPy is made dense; `aslinearoperator` leaves it as it is.

    Cost: none; of a linear operator of SciPy n products.

    Raises:
        HesseError: the matrix is not a dense real floating-point matrix.

    >>> dense_operator(torch.tensor([[2.0, 1.0], [1.0, 2.0]])).symmetric
    True
    """
    wrapped = from_scipy(matrix, symmetric=None)
    matrix = as_tensor(matrix) if wrapped is None else wrapped.to_dense()
    if not isinstance(matrix, Tensor):
        raise StructureError(
            expected="matrix to be a tensor, a NumPy array or a sparse matrix of SciPy",
            got=f"{type(matrix).__module__}.{type(matrix).__name__}",
            remedy="Convert it with torch.as_tensor(matrix).",
        )
    if matrix.ndim != 2:
        raise ShapeError(
            expected="matrix of shape (m, n)",
            got=f"shape {tuple(matrix.shape)}",
            remedy="Give a two-dimensional tensor; for diag(d) use hesse.diagonal_operator(d).",
        )
    if matrix.layout is not torch.strided:
        raise StructureError(
            expected="a dense matrix",
            got=f"one of layout {matrix.layout}",
            remedy="Give its product: hesse.function_operator(lambda v: S @ v, n); or .to_dense().",
        )
    Space.of(matrix, what="matrix")  # raises unless of a real floating-point dtype
    check_constant("matrix", [matrix])
    matrix = matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32))
    return DenseOperator(matrix, symmetric=_is_symmetric(matrix))


@public("hesse.function_operator(matvec, n)", nested=False)
def function_operator(
    matvec: Callable[[Tensor], Tensor],
    n: int | Space,
    m: int | Space | None = None,
    *,
    symmetric: bool = False,
    rmatvec: Callable[[Tensor], Tensor] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> FunctionOperator:
    """The operator of a linear function v -> A v on flat vectors.

    Args:
        matvec: the function; it gets a tensor (n,) and returns one (m,). It must not change v.
        n: the length of v, or the `Space` of v.
        m: the length of A v, or its `Space`; n by default.
        symmetric: a promise that A = A'; `hesse.testing.check_operator` tests it.
        rmatvec: the function u -> A' u, for an operator that is not symmetric.
        dtype, device: of the vectors; by default torch's default dtype, on the CPU.

    Cost: one call of the function for each product; without symmetry one more at the second, which
        tests that it is linear. Memory: two vectors.

    Raises:
        HesseError: at a product, if the function returns anything but a vector of its space, writes
            to v, or is plainly not linear (by 1 %), not deterministic, or not symmetric although it
            says so; rmatvec is compared with matvec. Defects of rounding are for `check_operator`.

    >>> A = function_operator(lambda v: 3 * v, 2, symmetric=True)
    >>> A @ torch.ones(2)
    tensor([3., 3.])
    """
    check_callable(matvec=matvec, rmatvec=rmatvec)
    domain = n if isinstance(n, Space) else Space.flat(n, dtype, device)
    if m is None:
        m = domain
    codomain = m if isinstance(m, Space) else Space.flat(m, dtype, device)
    return FunctionOperator(matvec, domain, codomain, symmetric, rmatvec)


@public("hesse.aslinearoperator(A)", nested=False)
def aslinearoperator(a: Any, *, symmetric: bool | None = None) -> LinearOperator:
    """`a` as an operator.

    Args:
        a: an operator, which is returned as it is; a dense matrix, a tensor or a NumPy array, which
            is not copied; a sparse matrix or a linear operator of SciPy, whose products run on the
            CPU.
        symmetric: a promise about a SciPy operator, which does not tell. Matrices are tested.

    Cost: none.

    Raises:
        OperatorError: `a` is nothing of these.
        HesseError: the matrix is not a real floating-point matrix.

    >>> aslinearoperator(torch.eye(3))
    DenseOperator(3 x 3, torch.float32)
    """
    if isinstance(a, LinearOperator):
        return a
    if isinstance(a, (Tensor, numpy.ndarray)):
        return dense_operator(a)
    wrapped = from_scipy(a, symmetric)
    if wrapped is not None:
        return wrapped
    raise OperatorError(
        expected="A to be a hesse.LinearOperator, a matrix (a 2-D tensor or array), or a sparse "
        "matrix or linear operator of SciPy",
        got=f"{type(a).__module__}.{type(a).__name__}",
        remedy="Wrap a function v -> A v with hesse.function_operator(matvec, n); the curvature of "
        "a hesse.Risk is hesse.hessian_operator(risk, params) or hesse.ggn_operator(risk, params).",
    )


def _is_symmetric(matrix: Tensor) -> bool:
    if matrix.shape[0] != matrix.shape[1]:
        return False
    if not matrix.numel():
        return True
    # The rounding error of an entry, relative to the largest entries of its row and its column.
    size = torch.maximum(matrix.abs().amax(dim=0), matrix.abs().amax(dim=1)).sqrt()
    allowed = 8 * torch.finfo(matrix.dtype).eps * size[:, None] * size
    return bool(((matrix - matrix.T).abs() <= allowed).all())
