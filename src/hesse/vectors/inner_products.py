# SPDX-License-Identifier: Apache-2.0
"""Inner products and norms of flat vectors in one process. `Space` gives those of whole vectors.

They accumulate in float64 whatever the dtype of the vectors, except for sums that are too short to
lose digits: the scalars of a Krylov recurrence must be more accurate than its products.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Entries converted to float64 at a time: few enough for the temporaries to stay in the cache.
_CHUNK = 1 << 17
# Number of entries whose products `dots` adds up in the vectors' own precision: for a matrix and a
# vector, where the kernels keep many partial sums, and for two matrices, where they do not.
_SUM, _SHORT = 1 << 16, 1 << 8
# Number of entries whose products `dot` and `norm` add up in float32. The products do not underflow
# if their mean is larger than the square of _SMALL; a sum that overflows is infinite.
_ROW, _SMALL = 1 << 6, 1e-15


def dot(u: Tensor, v: Tensor) -> float:
    """u'v for flat vectors; long sums are accumulated in float64."""
    if u.dtype == torch.float64:
        return float(torch.dot(u, v))
    if u.dtype == torch.float32 and u.numel() > _CHUNK:
        quick = _dot_by_rows(u, v)
        if _SMALL**2 * u.numel() < abs(quick) < math.inf:
            return quick
    left, right = u.new_empty(2, min(_CHUNK, u.numel()), dtype=torch.float64)
    pairs = zip(u.split(_CHUNK), v.split(_CHUNK), strict=True)
    parts = (torch.dot(left[: len(a)].copy_(a), right[: len(a)].copy_(b)) for a, b in pairs)
    return float(sum(parts))


def _dot_by_rows(u: Tensor, v: Tensor) -> float:
    """u'v: short sums in the vectors' own precision, which are added up in float64."""
    pairs = zip(u.split(_CHUNK), v.split(_CHUNK), strict=True)
    rows = [pair for a, b in pairs for pair in zip(_rows(a), _rows(b), strict=True)]
    sums = [(x * y).sum(dim=1) for x, y in rows]
    return float(torch.cat(sums).sum(dtype=torch.float64))


def _rows(v: Tensor) -> tuple[Tensor, Tensor]:
    """The vector as rows of _ROW entries, and the entries that are left as one more row."""
    whole = v.numel() // _ROW * _ROW
    return v[:whole].view(-1, _ROW), v[None, whole:]


def dots(basis: Tensor, v: Tensor) -> Tensor:
    """The inner products of the rows of `basis`, shape (j, n), with v or its rows: (j,) or (j, k).

    Long sums are taken in pieces, which are added up in float64: the error does not grow with n.
    """
    short, multiply = (_SUM, torch.mv) if v.ndim == 1 else (_SHORT, _dots_of_rows)
    if v.dtype == torch.float64 or v.shape[-1] <= short:
        return basis @ v.mT if v.ndim == 2 else basis @ v
    pieces = zip(basis.split(_SUM, dim=1), v.split(_SUM, dim=-1), strict=True)
    sums = torch.stack([multiply(rows, part) for rows, part in pieces])
    return sums.sum(dim=0, dtype=torch.float64).to(v.dtype)


def _dots_of_rows(left: Tensor, right: Tensor) -> Tensor:
    """left right', summed over short pieces first; torch's own product of two matrices is not."""
    whole = left.shape[1] // _SHORT * _SHORT
    a, b = (x[:, :whole].unflatten(1, (-1, _SHORT)).movedim(1, 0) for x in (left, right))
    rest = left[:, whole:] @ right[:, whole:].mT
    return (a @ b.mT).sum(dim=0, dtype=torch.float64) + rest


def norm(v: Tensor) -> float:
    """Euclidean norm of a flat vector; long sums are accumulated in float64.

    >>> norm(torch.tensor([3.0, 4.0]))
    5.0
    """
    if v.dtype == torch.float32 and v.numel() > _ROW:
        quick = _norm_by_rows(v)
        if _SMALL * v.numel() ** 0.5 < quick < math.inf:
            return quick
    pieces = v.split(_CHUNK) if v.numel() > _CHUNK else [v]
    norms = [torch.linalg.vector_norm(piece, dtype=torch.float64) for piece in pieces]
    return float(torch.stack(norms).norm() if len(norms) > 1 else norms[0])


def _norm_by_rows(v: Tensor) -> float:
    """The norm, from the norms of short pieces in the vector's own precision."""
    norms = [torch.linalg.vector_norm(rows, dim=1) for rows in _rows(v)]
    return float(torch.linalg.vector_norm(torch.cat(norms), dtype=torch.float64))


def largest(x: Tensor) -> float:
    """The largest entry in magnitude, without a copy of x; 0 if there is none."""
    if not x.numel():
        return 0.0
    least, most = torch.aminmax(x)
    return max(abs(float(least)), abs(float(most)))
