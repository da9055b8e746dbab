# SPDX-License-Identifier: Apache-2.0
"""Diagonal operators and the identity."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.errors import ArgumentError
from hesse.operators.algebra import LinearOperator
from hesse.operators.structure import diagonal_of, logdet_of
from hesse.operators.terms import Terms
from hesse.vectors.places import Where, taken
from hesse.vectors.space import Space, Tree


class DiagonalOperator(LinearOperator):
    """diag(d)."""

    def __init__(self, space: Space, diagonal: Tensor) -> None:
        super().__init__(space, symmetric=True)
        self.diagonal = diagonal

    def _matvec(self, v: Tensor) -> Tensor:
        return self.diagonal * v

    def _matmat(self, block: Tensor) -> Tensor:
        return self.diagonal[:, None] * block

    def _principal(self, space: Space, where: Where) -> LinearOperator:
        return DiagonalOperator(space, taken(self.diagonal, where))

    def _inverse(self) -> LinearOperator | None:
        reciprocal = 1.0 / self.diagonal
        regular = self.domain.all_finite(reciprocal)
        return DiagonalOperator(self.domain, reciprocal) if regular else None

    def _diagonal(self) -> Tensor:
        return self.diagonal

    def _logdet(self) -> tuple[float, float]:
        return logdet_of(self.diagonal, self.domain)

    def _eigenvalues(self) -> Tensor:
        return self.domain.whole(self.diagonal[None])[0].double()

    def _function(self, f: Callable[[Tensor], Tensor]) -> LinearOperator:
        return DiagonalOperator(self.domain, f(self.diagonal.double()).to(self.dtype))

    def _eigen(self) -> tuple[LinearOperator, Tensor]:
        return IdentityOperator(self.domain), self.diagonal.double()

    def _squared_entries(self) -> LinearOperator:
        return DiagonalOperator(self.domain, self.diagonal**2)

    def _plus_diagonal(self, D: LinearOperator) -> LinearOperator:
        space = self.domain.common(D.domain)
        return DiagonalOperator(space, self.diagonal + diagonal_of(D))

    @property
    def is_structured(self) -> bool:
        return True

    @property
    def is_diagonal(self) -> bool:
        return True


class IdentityOperator(LinearOperator):
    """I; if adaptable, in the space of the operator that it is added to or multiplied with."""

    def __init__(self, space: Space, *, adaptable: bool = False) -> None:
        super().__init__(space, symmetric=True)
        self._adaptable = adaptable

    def _matvec(self, v: Tensor) -> Tensor:
        return v.clone()

    def _matmat(self, block: Tensor) -> Tensor:
        return block.clone()

    def _principal(self, space: Space, where: Where) -> LinearOperator:
        return IdentityOperator(space)

    def _inverse(self) -> LinearOperator:
        return self

    def _diagonal(self) -> Tensor:
        return torch.ones_like(self.domain.zeros())

    def _as_diagonal(self) -> DiagonalOperator:
        return DiagonalOperator(self.domain, self._diagonal())

    def _plus_diagonal(self, D: LinearOperator) -> LinearOperator:
        return self._as_diagonal()._plus_diagonal(D)

    def _logdet(self) -> tuple[float, float]:
        return 1.0, 0.0

    def _eigenvalues(self) -> Tensor:
        return torch.ones(self.domain.n, dtype=torch.float64, device=self.device)

    def _function(self, f: Callable[[Tensor], Tensor]) -> LinearOperator:
        return self._as_diagonal()._function(f)

    def _eigen(self) -> tuple[LinearOperator, Tensor]:
        return self, self._eigenvalues()

    def _squared_entries(self) -> LinearOperator:
        return self

    @property
    def is_structured(self) -> bool:
        return True

    @property
    def is_diagonal(self) -> bool:
        return True

    def _expand(self) -> Terms | None:
        return {(): 1.0}

    def _in_space(self, space: Space) -> LinearOperator:
        fits = self._adaptable and space.n == self.domain.n
        return IdentityOperator(space, adaptable=True) if fits else self


@public("hesse.diagonal_operator(d)", nested=False)
def diagonal_operator(d: Tree) -> DiagonalOperator:
    """The operator diag(d), with (A v)_i = d_i v_i.

    Args:
        d: a vector or a tree of tensors or NumPy arrays; it is copied.

    Cost: n multiplications a product; n numbers. Its inverse and its diagonal take no product.

    Raises:
        HesseError: a leaf is not a real floating-point tensor.

    >>> diagonal_operator(torch.tensor([1.0, 2.0])) @ torch.tensor([3.0, 4.0])
    tensor([3., 8.])
    """
    space = Space.of(d, what="d")
    return DiagonalOperator(space, space.flatten(d).clone())


@public("hesse.identity_operator({n})", nested=False)
def identity_operator(
    n: int, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> IdentityOperator:
    """The identity of R^n.

    Args:
        n: the dimension.
        dtype: of the vectors. Without one the identity takes the space of the operator to which it
            is added, or with which it is multiplied.
        device: of the vectors.

    Cost: a copy for each product.

    Raises:
        ArgumentError: n is not an integer of at least 1.

    >>> A = diagonal_operator(torch.tensor([1.0, 2.0], dtype=torch.float64))
    >>> (A + 0.5 * identity_operator(2)).to_dense()
    tensor([[1.5000, 0.0000],
            [0.0000, 2.5000]], dtype=torch.float64)
    """
    if not isinstance(n, int) or n < 1:
        raise ArgumentError(
            expected="a dimension n >= 1",
            got=repr(n),
            remedy="Give A.shape[0].",
        )
    return IdentityOperator(Space.flat(n, dtype, device), adaptable=dtype is None)
