# SPDX-License-Identifier: Apache-2.0
"""Products with constant sparse matrices, composed of gathers and sums of entries.

A trace has dense tensors only. A composed product takes some times as long, and memory for each
entry of the matrix. See `composing`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from hesse.ad.composing import composes


def sparse_product(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What stands for a product of two matrices, or of a matrix and a vector.

    >>> from hesse.ad.composing import Composing
    >>> A = torch.tensor([[0.0, 2.0], [0.0, 3.0], [4.0, 0.0]]).to_sparse_csr()
    >>> product = Composing(lambda x: sparse_product(torch.matmul)(A, x))
    >>> product(torch.tensor([1.0, 10.0]))
    tensor([20., 30.,  4.])
    """

    def multiply(*args: Any, **kwargs: Any) -> Tensor:
        if not composes() or kwargs or len(args) != 2:
            return function(*args, **kwargs)
        left, right = args
        if _is_constant(left) and _is_dense(right, left):
            rows, columns, values = _entries(left)
            shape = (left.shape[0], *right.shape[1:])
            terms = right.index_select(0, columns) * values.view(-1, *[1] * (right.ndim - 1))
            return right.new_zeros(shape).index_add(0, rows, terms)
        if _is_constant(right) and _is_dense(left, right):
            rows, columns, values = _entries(right)
            shape = (*left.shape[:-1], right.shape[1])
            terms = left.index_select(-1, rows) * values
            return left.new_zeros(shape).index_add(-1, columns, terms)
        return function(*args)

    return multiply


def transposed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What stands for a transposition, which must not be traced where the matrix is sparse."""

    def transpose(*args: Any, **kwargs: Any) -> Tensor:
        if not (composes() and args and _is_constant(args[0])):
            return function(*args, **kwargs)
        return _unobserved(lambda: function(*args, **kwargs))

    return transpose


def _is_constant(tensor: Any) -> bool:
    """Whether this is a sparse matrix that f has from elsewhere."""
    return isinstance(tensor, Tensor) and tensor.layout in _LAYOUTS and not tensor.requires_grad


def _is_dense(tensor: Any, matrix: Tensor) -> bool:
    """Whether this is a vector or a matrix that a matrix can be multiplied with."""
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
        return False
    return tensor.ndim in (1, 2) and matrix.ndim == 2 and tensor.dtype == matrix.dtype


_LAYOUTS = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)


def _entries(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and values of the entries."""
    return _unobserved(lambda: _read(matrix))


def _unobserved(run: Callable[[], Any]) -> Any:
    """run(), in a thread that no trace watches."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()


def _read(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        if matrix.layout is torch.sparse_coo:
            matrix = matrix.coalesce()
            rows, columns = matrix.indices()
            return rows.contiguous(), columns.contiguous(), matrix.values()
        is_csr = matrix.layout is torch.sparse_csr
        starts = matrix.crow_indices() if is_csr else matrix.ccol_indices()
        others = matrix.col_indices() if is_csr else matrix.row_indices()
        lines = torch.repeat_interleave(starts.diff())
        return (lines, others, matrix.values()) if is_csr else (others, lines, matrix.values())


_PRODUCTS = (
    *(torch.mm, torch.Tensor.mm, torch.mv, torch.Tensor.mv, torch.sparse.mm),
    *(torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__),
)
_T: Any = torch.Tensor
_TRANSPOSITIONS = (
    *(torch.t, torch.Tensor.t, torch.transpose, torch.Tensor.transpose),
    *(_T.T.__get__, _T.mT.__get__),
)
SPARSE_PRODUCTS = {
    **{function: sparse_product(function) for function in _PRODUCTS},
    **{function: transposed(function) for function in _TRANSPOSITIONS},
}
"""What stands for each of these."""
