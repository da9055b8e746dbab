# SPDX-License-Identifier: Apache-2.0
"""Operators made from what a user already has: a matrix, or a function v -> A v."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hesse.errors import OperatorError, ShapeError, StructureError
from hesse.operators.algebra import LinearOperator, diagonal_of
from hesse.operators.dense_inverse import dense_inverse
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

    def to_dense(self) -> Tensor:
        """The matrix itself, as a copy."""
        return self.matrix.clone()

    def _inverse(self) -> LinearOperator | None:
        rows, columns = self.shape
        return dense_inverse(self.matrix, self.domain, self.symmetric) if rows == columns else None

    def _diagonal(self) -> Tensor | None:
        rows, columns = self.shape
        return self.matrix.diagonal() if rows == columns else None

    def _plus_diagonal(self, D: LinearOperator) -> LinearOperator:
        space = self.domain.common(D.domain, f"{self} + {D}")
        matrix = self.matrix + torch.diag(diagonal_of(D))
        return DenseOperator(matrix, symmetric=self.symmetric, space=space)


class FunctionOperator(LinearOperator):
    """A function v -> A v as an operator."""

    def __init__(
        self,
        matvec: Callable[[Tensor], Tensor],
        domain: Space,
        codomain: Space,
        symmetric: bool,
        rmatvec: Callable[[Tensor], Tensor] | None,
    ) -> None:
        super().__init__(domain, codomain, symmetric=symmetric)
        self._function, self._adjoint = matvec, rmatvec

    def _matvec(self, v: Tensor) -> Tensor:
        product = self._function(v)
        call = "hesse.function_operator(matvec, n): matvec(v)"
        return self.codomain.check_vector(product, call=call, what="A v")

    def _rmatvec(self, u: Tensor) -> Tensor:
        if self._adjoint is not None:
            return self._adjoint(u)
        return super()._rmatvec(u)


def dense_operator(matrix: Tensor) -> DenseOperator:
    """The operator of a matrix of shape (m, n); symmetric if the matrix is, to rounding.

    Vectors are of its dtype, but of float32 at least. The matrix is not copied (unless it is in a
    lower precision), as of `torch.from_numpy` and of SciPy: writing into it changes the operator,
    but not what it says about its symmetry.

    >>> dense_operator(torch.tensor([[2.0, 1.0], [1.0, 2.0]])).symmetric
    True
    """
    call = "hesse.dense_operator(matrix)"
    if not isinstance(matrix, Tensor):
        raise StructureError(
            call,
            expected="a tensor",
            got=f"{type(matrix).__module__}.{type(matrix).__name__}",
            remedy="Convert it with torch.as_tensor(matrix).",
        )
    if matrix.ndim != 2:
        raise ShapeError(
            call,
            expected="a matrix of shape (m, n)",
            got=f"shape {tuple(matrix.shape)}",
            remedy="Give a two-dimensional tensor; for diag(d) use hesse.diagonal_operator(d).",
        )
    if matrix.layout is not torch.strided:
        raise StructureError(
            call,
            expected="a dense matrix",
            got=f"one of layout {matrix.layout}",
            remedy="Give its product: hesse.function_operator(lambda v: S @ v, n); or .to_dense().",
        )
    Space.of(matrix, call=call, what="matrix")  # a floating-point dtype
    matrix = matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32))
    return DenseOperator(matrix, symmetric=_is_symmetric(matrix))


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
    """The operator of a function v -> A v on flat vectors of length n (m: of its results).

    `symmetric=True` promises A = A'; `rmatvec` computes A' u otherwise. Check both with
    `hesse.testing.check_operator`.

    >>> A = function_operator(lambda v: 3 * v, 2, symmetric=True)
    >>> A @ torch.ones(2)
    tensor([3., 3.])
    """
    domain = n if isinstance(n, Space) else Space.flat(n, dtype, device)
    if m is None:
        m = domain
    codomain = m if isinstance(m, Space) else Space.flat(m, dtype, device)
    return FunctionOperator(matvec, domain, codomain, symmetric, rmatvec)


def aslinearoperator(a: Any) -> LinearOperator:
    """`a` as an operator: an operator itself, or a matrix, which is not copied.

    >>> aslinearoperator(torch.eye(3))
    DenseOperator(3 x 3, torch.float32)
    """
    if isinstance(a, LinearOperator):
        return a
    if isinstance(a, Tensor):
        return dense_operator(a)
    raise OperatorError(
        "hesse.aslinearoperator(A)",
        expected="a hesse.LinearOperator or a matrix (a 2-D tensor)",
        got=f"{type(a).__module__}.{type(a).__name__}",
        remedy="Wrap a function v -> A v with hesse.function_operator(matvec, n), a NumPy array "
        "with torch.from_numpy.",
    )


def _is_symmetric(matrix: Tensor) -> bool:
    if matrix.shape[0] != matrix.shape[1]:
        return False
    if not matrix.numel():
        return True
    # Of an entry that was computed: relative to the largest of its row and of its column.
    size = torch.maximum(matrix.abs().amax(dim=0), matrix.abs().amax(dim=1)).sqrt()
    allowed = 8 * torch.finfo(matrix.dtype).eps * size[:, None] * size
    return bool(((matrix - matrix.T).abs() <= allowed).all())
