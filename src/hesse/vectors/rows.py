# SPDX-License-Identifier: Apache-2.0
"""Many long vectors as the rows of one tensor: memory for them, and ways to fill it.

The operating system maps fresh memory page by page, when a page is first written. In pages of 4 KB
that takes as long as several passes over the memory, in pages of 2 MB a third of it (decision 16).
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

_LARGE_PAGE = 1 << 21
_MADV_HUGEPAGE = 14  # of <sys/mman.h> on Linux
_CHUNK = 1 << 12  # entries of each column that are transposed at a time, to stay in the cache
_PIECE = 1 << 16  # columns that are transformed at a time, at most, and a sixteenth of all


def empty_rows(
    count: int, n: int, *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Tensor:
    """Uninitialised memory of shape (count, n).

    >>> empty_rows(2, 3, dtype=torch.float32).shape
    torch.Size([2, 3])
    """
    rows = torch.empty(count, n, dtype=dtype, device=device)
    if rows.device.type == "cpu" and rows.nbytes > _LARGE_PAGE:
        _ask_for_large_pages(rows.data_ptr(), rows.nbytes)
    return rows


def stacked(count: int, vectors: Iterable[Tensor]) -> Tensor:
    """The `count` vectors as rows; each is copied when it comes, and no reference to it is kept.

    >>> stacked(2, (torch.full((3,), float(i)) for i in range(2)))
    tensor([[0., 0., 0.],
            [1., 1., 1.]])
    """
    rows = torch.empty(0)
    for i, v in enumerate(vectors):
        if i == 0:
            rows = empty_rows(count, len(v), dtype=v.dtype, device=v.device)
        rows[i] = v
    return rows


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The entries of all tensors in one vector: fresh memory, without an autograd graph.

    >>> joined([torch.eye(2), torch.zeros(1)])
    tensor([1., 0., 0., 1., 0.])
    """
    vectors = [part.detach().reshape(-1) for part in parts]
    n, first = sum(len(v) for v in vectors), vectors[0]
    dtype = functools.reduce(torch.promote_types, {v.dtype for v in vectors})
    return torch.cat(vectors, out=empty_rows(1, n, dtype=dtype, device=first.device)[0])


def transposed(block: Tensor) -> Tensor:
    """The columns of a block (n, k) as contiguous rows (k, n); no copy if they are that already.

    >>> transposed(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([[1., 3.],
            [2., 4.]])
    """
    n, k = block.shape
    if block.T.is_contiguous():
        return block.T
    if block.device.type != "cpu" or n <= _CHUNK:
        return block.T.contiguous()
    rows = empty_rows(k, n, dtype=block.dtype)
    for piece, columns in zip(block.split(_CHUNK), rows.split(_CHUNK, dim=1), strict=True):
        columns.copy_(piece.T)
    return rows


def transform(rows: Tensor, S: Tensor) -> None:
    """Overwrite the first k rows with S @ rows, for S of shape (k, count) with k <= count.

    >>> rows = torch.eye(2)
    >>> transform(rows, torch.tensor([[3.0, 4.0]]))
    >>> rows
    tensor([[3., 4.],
            [0., 1.]])
    """
    S = S.to(rows.device, torch.promote_types(rows.dtype, torch.float32))
    for piece in pieces(rows):
        piece[: len(S)] = S @ piece.to(S.dtype)


def pieces(rows: Tensor) -> tuple[Tensor, ...]:
    """Slices of all rows, some columns each, so that work on one slice takes little memory."""
    return rows.split(min(_PIECE, max(_CHUNK, rows.shape[1] // 16)), dim=1)


def columns(blocks: list[Tensor], width: int) -> Iterator[Tensor]:
    """The rows of several blocks, stacked, as slices of `width` columns each.

    >>> [piece.tolist() for piece in columns([torch.ones(1, 3), torch.zeros(1, 3)], 2)]
    [[[1.0, 1.0], [0.0, 0.0]], [[1.0], [0.0]]]
    """
    return map(torch.cat, zip(*(block.split(width, dim=1) for block in blocks), strict=True))


def _ask_for_large_pages(address: int, size: int) -> None:
    """Advise the system to use large pages for this memory; it need not follow."""
    first = -(-address // _LARGE_PAGE) * _LARGE_PAGE
    last = (address + size) // _LARGE_PAGE * _LARGE_PAGE
    madvise = _madvise()
    if last > first and madvise is not None:
        madvise(first, last - first, _MADV_HUGEPAGE)


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """The system's `madvise`, on Linux."""
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return function
