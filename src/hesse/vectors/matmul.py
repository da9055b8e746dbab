# SPDX-License-Identifier: Apache-2.0
"""Large products of matrices, into memory in which every row begins with a cache line.

Where the rows of a float32 result begin anywhere, as they do with 785 columns, MKL takes half as
long again on processors of others than Intel: 62 against 93 GFLOP/s for 1000 x 1000 by 1000 x 785
on a core of an AMD EPYC. A weight with its bias as a further column has such a size.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LINE = 16  # numbers of float32 in 64 bytes
_LARGE = 1 << 18  # entries of a result; below, nothing is gained


def empty_matrix(rows: int, columns: int, like: Tensor) -> Tensor:
    """Uninitialised memory of shape (rows, columns), every row at the beginning of a cache line.

    >>> empty_matrix(2, 17, torch.zeros(1)).stride()
    (32, 1)
    """
    return like.new_empty(rows, -(-columns // _LINE) * _LINE)[:, :columns]


def matmul(A: Tensor, B: Tensor) -> Tensor:
    """A B for matrices or batches of such; the rows of a large matrix may lie apart.

    >>> matmul(torch.eye(2), torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    tensor([[1., 2., 3.],
            [4., 5., 6.]])
    """
    if A.ndim > 2 or B.ndim > 2:
        return A @ B
    rows, columns = len(A), B.shape[1]
    apart = A.dtype == torch.float32 and A.device.type == "cpu" and columns % _LINE > 0
    if not apart or rows * columns < _LARGE:
        return A @ B
    return torch.mm(A, B, out=empty_matrix(rows, columns, A))
