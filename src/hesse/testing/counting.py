# SPDX-License-Identifier: Apache-2.0
"""`CountingOperator`: how many products an algorithm takes."""

from __future__ import annotations

from torch import Tensor

from hesse.operators import LinearOperator


class CountingOperator(LinearOperator):
    """A, and a count of the products taken with it.

    `products` adds up A v, A' u, v' A v, and k for a block of k columns; it may be set back to
    zero. Everything else, the inner product included, is A's own.

    >>> import torch
    >>> from hesse.operators import diagonal_operator
    >>> A = CountingOperator(diagonal_operator(torch.tensor([1.0, 2.0])))
    >>> A @ torch.ones(2), A.to_dense(), A.products
    (tensor([1., 2.]), tensor([[1., 0.],
            [0., 2.]]), 3)
    """

    def __init__(self, A: LinearOperator) -> None:
        super().__init__(A.domain, A.codomain, symmetric=A.symmetric)
        self.A, self.products = A, 0

    def _matvec(self, v: Tensor) -> Tensor:
        self.products += 1
        return self.A._matvec(v)

    def _rmatvec(self, u: Tensor) -> Tensor:
        self.products += 1
        return self.A._rmatvec(u)

    def _matmat(self, block: Tensor) -> Tensor:
        self.products += block.shape[1]
        return self.A._matmat(block)

    def _curvature(self, v: Tensor) -> float:
        self.products += 1
        return self.A._curvature(v)
