# SPDX-License-Identifier: Apache-2.0
"""Q diag(w) Q' with Q orthogonal: a symmetric matrix given by its eigenvalues and eigenvectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hesse.operators.algebra import LinearOperator, diagonal_of
from hesse.vectors.space import Space


class RotatedDiagonal(LinearOperator):
    """Q diag(w) Q' for an orthogonal operator Q; its inverse, and A + c I, change w alone."""

    def __init__(self, space: Space, Q: LinearOperator, w: Tensor) -> None:
        super().__init__(space, symmetric=True)
        self.Q, self.w = Q, w

    def _matvec(self, v: Tensor) -> Tensor:
        return self.Q._matvec(self.w * self.Q._rmatvec(v))

    def _matmat(self, block: Tensor) -> Tensor:
        return self.Q._matmat(self.w[:, None] * self.Q._rmatmat(block))

    def _inverse(self) -> LinearOperator | None:
        size = self.w.abs()
        singular = bool(size.min() <= torch.finfo(self.dtype).eps * size.max())
        return None if singular else RotatedDiagonal(self.domain, self.Q, 1.0 / self.w)

    def _diagonal(self) -> Tensor | None:
        squares = getattr(self.Q, "squares", None)  # of the entries of Q
        return None if squares is None else squares._matvec(self.w)

    def _function(self, f: Callable[[Tensor], Tensor]) -> LinearOperator:
        """f(A) = Q diag(f(w)) Q'."""
        return RotatedDiagonal(self.domain, self.Q, f(self.w))

    def _trace(self) -> float:
        return float(self.w.sum(dtype=torch.float64))

    def _logdet(self) -> tuple[float, float]:
        w = self.w.double()
        return float(w.sign().prod()), float(w.abs().log().sum())

    def _plus_diagonal(self, D: LinearOperator) -> LinearOperator | None:
        d = diagonal_of(D)
        if self.domain.any(d != d[0]):
            return None
        space = self.domain.common(D.domain)
        return RotatedDiagonal(space, self.Q, self.w + d[0])
