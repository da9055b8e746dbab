# SPDX-License-Identifier: Apache-2.0
"""The basis of a Krylov method: rows, perhaps on another device or in lower precision than vectors.

All operations of a method on its basis are here: inner products with it, the removal of components,
its rotation. The basis is nearly all the memory that a method takes, so nothing here copies it: the
rotation runs over chunks of columns, in place.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.linalg import vector_norm

from hesse.krylov.gram_schmidt import KEPT
from hesse.krylov.rounding import unit_roundoff
from hesse.operators.algebra import LinearOperator
from hesse.vectors.rows import empty_rows, pieces, transform


class Basis:
    """Rows v_1, ..., v_size in R^n, of which the first so many are in use.

    Args:
        A: the operator, whose inner products and whose vectors these are.
        size: rows.
        dtype, device: of the rows; default those of the vectors of A.
        memory: rows of another basis, which is not used any more; they serve if they are enough.
    """

    is_exact: bool
    """Whether rows are vectors of A: of its dtype, on its device."""
    eps: float
    """The unit roundoff of the rows, which is not below that of the vectors."""

    def __init__(
        self,
        A: LinearOperator,
        size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        memory: Tensor | None = None,
    ) -> None:
        self.A = A
        dtype = A.dtype if dtype is None else dtype
        device = A.device if device is None else torch.device(device)
        if memory is None or len(memory) < size:
            memory = empty_rows(size, A.domain.size, dtype=dtype, device=device)
        self.rows = memory
        self.is_exact = dtype == A.dtype and device == A.device
        self.eps = max(torch.finfo(dtype).eps, unit_roundoff(A))

    def __getitem__(self, i: int) -> Tensor:
        """Row i as a vector."""
        return self.rows[i].to(self.A.device, self.A.dtype)

    def put(self, i: int, v: Tensor, length: float) -> None:
        """Row i becomes v / length."""
        if self.is_exact:
            torch.div(v, length, out=self.rows[i])
        else:
            self.rows[i] = v / length

    def swap(self, i: int, j: int) -> None:
        """Exchange two rows."""
        row = self.rows[i].clone()
        self.rows[i] = self.rows[j]
        self.rows[j] = row

    def block(self, start: int, stop: int) -> Tensor:
        """Some rows as the columns of a block, shape (n, k)."""
        return self.rows[start:stop].to(self.A.device, self.A.dtype).T

    def inners(self, v: Tensor, count: int) -> Tensor:
        """Inner products of the first `count` rows with v: float64 on the CPU, shape (count,)."""
        if self.is_exact or count == 0:
            return self.A.domain.inners(self.rows[:count].to(v), v).to("cpu", torch.float64)
        rows = [self.A.domain.inners(self[i][None], v) for i in range(count)]
        return torch.cat(rows).to("cpu", torch.float64)

    def measure(self, v: Tensor, rows: range) -> tuple[Tensor, float]:
        """The inner products of some rows with v, accurately, and the norm of v."""
        space = self.A.domain
        if self.is_exact:  # in one reduction
            along, (length,) = space.measure([(self.rows[i], v) for i in rows], [v])
        else:  # one converted row at a time
            along, length = [space.inner(self[i], v) for i in rows], space.norm(v)
        return torch.tensor(along, dtype=torch.float64), length

    def orthogonalise(self, v: Tensor, count: int, overlap: float) -> tuple[Tensor, float]:
        """Remove from v its components along the first `count` rows, in place; twice if needed.

        One reduction each time. `overlap`: how far the rows are from orthonormal.

        Returns:
            The components, as of `inners`; the norm that is left.
        """
        h, length = self._project(v, count)
        self.remove(v, h)
        left = self._left(v, h, length, overlap)
        if left >= KEPT * length:
            return h, left
        more, length = self._project(v, count)  # most of what is left is rounding
        self.remove(v, more)
        return h + more, self._left(v, more, length, overlap)

    def _project(self, v: Tensor, count: int) -> tuple[Tensor, float]:
        """The inner products with v, as of `inners`, and the norm of v."""
        if not self.is_exact:
            return self.inners(v, count), self.A.domain.norm(v)
        h, length = self.A.domain.project(self.rows[:count], v)
        return h.to("cpu", torch.float64), length

    def _left(self, v: Tensor, removed: Tensor, length: float, overlap: float) -> float:
        """|v|, which was `length` before this was removed.

        By Pythagoras where that saves a message, and is right.
        """
        share = float(vector_norm(removed)) / length if length > 0.0 else 0.0
        saves = self.is_exact and self.A.domain.shards is not None
        if saves and share <= 1.0 and overlap * share**2 <= self.eps:
            return length * math.sqrt((1.0 - share) * (1.0 + share))
        return self.A.domain.norm(v)

    def remove(self, v: Tensor, coefficients: Tensor, first: int = 0) -> None:
        """v - sum_i c_i v_i for the rows from `first` on, in place."""
        c = coefficients.to(v)
        rows = self.rows[first : first + len(c)]
        if self.is_exact:
            v.addmv_(rows.T, c, alpha=-1.0)
            return
        for part, some in zip(pieces(v[None]), pieces(rows), strict=True):
            part[0].addmv_(some.to(v).T, c, alpha=-1.0)

    def combine(self, coordinates: Tensor) -> Tensor:
        """The vectors with these coordinates (columns), as rows: shape (k, n)."""
        count, k = coordinates.shape
        result = empty_rows(k, self.A.domain.size, dtype=self.A.dtype, device=self.A.device)
        if self.is_exact:
            return torch.mm(coordinates.T.to(self.rows), self.rows[:count], out=result)
        S = coordinates.T.to(result)
        for part, some in zip(pieces(result), pieces(self.rows[:count]), strict=True):
            torch.mm(S, some.to(result), out=part)
        return result

    def rotate(self, coordinates: Tensor, tail: slice) -> None:
        """Put the vectors with these coordinates first, and the rows of `tail` behind them."""
        count, p = coordinates.shape
        transform(self.rows[:count], coordinates.T)
        for i, j in enumerate(range(tail.start, tail.stop)):
            self.rows[p + i] = self.rows[j]


def orthonormalise(A: LinearOperator, rows: Tensor, rank: Tensor | None = None) -> Tensor:
    """Make rows, which are nearly orthonormal, orthonormal to rounding, in place.

    From each row its components along those before it are removed; `rank` is their order, the best
    first. Returns them: entry (i, j) was removed from row i along row j.
    """
    rank = torch.arange(len(rows)) if rank is None else rank
    G = A.domain.gram(rows, rows)
    if float((G - torch.eye(len(G), dtype=G.dtype)).abs().max()) <= 8 * unit_roundoff(A):
        return torch.zeros_like(G)
    ranked = torch.linalg.inv(torch.linalg.cholesky(G[rank][:, rank]))
    place = rank.argsort()
    S = ranked[place][:, place]
    transform(rows, S)
    return torch.diag(S.diagonal()) - S


def permute(rows: Tensor, order: Tensor) -> None:
    """Put rows in this order, in place."""
    if bool((order == torch.arange(len(order))).all()):
        return
    for some in pieces(rows):
        some.copy_(some[order.to(rows.device)])
