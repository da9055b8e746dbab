# SPDX-License-Identifier: Apache-2.0
"""Matrices of low rank that need not be symmetric."""

from __future__ import annotations

from torch import Tensor

from hesse.operators.algebra import LinearOperator
from hesse.vectors.space import Space


class LowRankMap(LinearOperator):
    """U diag(s) V'; s is converted to the dtype of U for products."""

    def __init__(self, domain: Space, codomain: Space, U: Tensor, s: Tensor, V: Tensor) -> None:
        super().__init__(domain, codomain)
        self.U, self.s, self.V = U, s, V
        self._weights = s.to(U.dtype)

    def _matvec(self, v: Tensor) -> Tensor:
        return self.U @ (self._weights * (self.V.T @ v))

    def _rmatvec(self, u: Tensor) -> Tensor:
        return self.V @ (self._weights * (self.U.T @ u))

    def _matmat(self, block: Tensor) -> Tensor:
        return self.U @ (self._weights[:, None] * (self.V.T @ block))

    def _rmatmat(self, block: Tensor) -> Tensor:
        return self.V @ (self._weights[:, None] * (self.U.T @ block))

    def _diagonal(self) -> Tensor | None:
        return (self.U * self.V) @ self._weights if self.is_structured else None

    @property
    def is_structured(self) -> bool:
        return self.domain == self.codomain

    def _expression(self) -> str:
        return f"LowRank[{self.U.shape[1]}]"
