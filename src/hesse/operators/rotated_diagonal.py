# SPDX-License-Identifier: Apache-2.0
"""Q diag(w) Q' with Q orthogonal: a symmetric matrix given by its eigenvalues and eigenvectors."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hesse.operators.algebra import LinearOperator
from hesse.operators.structure import diagonal_of, logdet_of
from hesse.vectors.space import Space


class RotatedDiagonal(LinearOperator):
    """Q diag(w) Q' for an orthogonal operator Q; its inverse, and A + c I, change w alone.

    Args:
        w: shape (n,), converted to the dtype of the space for products; best float64.
        shift: c, of which w = d + c was made of eigenvalues d that have rounding errors.
    """

    def __init__(self, space: Space, Q: LinearOperator, w: Tensor, shift: float = 0.0) -> None:
        super().__init__(space, symmetric=True)
        self.Q, self.w, self.shift = Q, w, shift
        self._weights = w.to(space.dtype)

    def _matvec(self, v: Tensor) -> Tensor:
        return self.Q._matvec(self._weights * self.Q._rmatvec(v))

    def _matmat(self, block: Tensor) -> Tensor:
        return self.Q._matmat(self._weights[:, None] * self.Q._rmatmat(block))

    def _inverse(self) -> LinearOperator | None:
        inverse = RotatedDiagonal(self.domain, self.Q, 1.0 / self.w)
        regular = not self._may_be_zero() and self.domain.all_finite(inverse._weights)
        return inverse if regular else None

    def _may_be_zero(self) -> bool:
        """Whether an eigenvalue is of the size of its rounding error.

        That is one of d. Where d and c have one sign, w is at least c, which is exact.
        """
        size, eps = self.w.abs(), torch.finfo(self.dtype).eps
        in_doubt = size <= eps * size.max()
        if self.shift:
            in_doubt &= self.w / self.shift < 1.0 - 4.0 * eps
        return bool(in_doubt.any())

    def _diagonal(self) -> Tensor | None:
        """The squares of the entries of Q, times w."""
        squared = self.Q._squared_entries()
        return None if squared is None else squared._matvec(self._weights)

    def _trace(self) -> float:
        return float(self.w.sum(dtype=torch.float64))

    def _logdet(self) -> tuple[float, float]:
        return (0.0, -math.inf) if self._may_be_zero() else logdet_of(self.w)

    def _eigenvalues(self) -> Tensor:
        return self.w.double()

    def _function(self, f: Callable[[Tensor], Tensor]) -> LinearOperator:
        return RotatedDiagonal(self.domain, self.Q, f(self.w.double()))

    def _eigen(self) -> tuple[LinearOperator, Tensor]:
        return self.Q, self.w.double()

    def _plus_diagonal(self, D: LinearOperator) -> LinearOperator | None:
        d = diagonal_of(D)
        if self.domain.any(d != d[0]):
            return None
        space = self.domain.common(D.domain)
        return RotatedDiagonal(space, self.Q, self.w + d[0], self.shift + float(d[0]))

    @property
    def is_structured(self) -> bool:
        return True
