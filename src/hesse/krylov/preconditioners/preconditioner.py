# SPDX-License-Identifier: Apache-2.0
"""`Preconditioner`: an approximate inverse with its price; and what all its makers check."""

from __future__ import annotations

from torch import Tensor

from hesse.operators.algebra import LinearOperator


class Preconditioner(LinearOperator):
    """M, close to the inverse of some A, and the products with A that making it took.

    >>> import torch
    >>> from hesse.operators import identity_operator
    >>> M = Preconditioner(2.0 * identity_operator(2), products=3)
    >>> M @ torch.ones(2), M.products
    (tensor([2., 2.]), 3)
    """

    def __init__(self, M: LinearOperator, products: int) -> None:
        super().__init__(M.domain, M.codomain, symmetric=M.symmetric)
        self.M, self.products = M, products

    def _matvec(self, v: Tensor) -> Tensor:
        return self.M._matvec(v)

    def _rmatvec(self, u: Tensor) -> Tensor:
        return self.M._rmatvec(u)

    def _matmat(self, block: Tensor) -> Tensor:
        return self.M._matmat(block)

    def _rmatmat(self, block: Tensor) -> Tensor:
        return self.M._rmatmat(block)

    def _inverse(self) -> LinearOperator | None:
        return self.M._inverse()

    def _diagonal(self) -> Tensor | None:
        return self.M._diagonal()
