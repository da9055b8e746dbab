# SPDX-License-Identifier: Apache-2.0
"""What an operator does for a vector: the half of `LinearOperator` that every algorithm sees.

A subclass writes one method, `_matvec`, on flat vectors. Products with trees and blocks, inner
products and the conversions follow. The other half, the algebra, is in base.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hesse.errors import NonFiniteError, OperatorError, ShapeError
from hesse.operators.scipy import as_scipy
from hesse.vectors.rows import stacked, transposed
from hesse.vectors.space import Space, Tree, all_finite

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator as ScipyOperator


class Products(ABC):
    """A linear map known by its products; `LinearOperator` documents the arguments."""

    def __init__(
        self, domain: Space | int, codomain: Space | int | None = None, *, symmetric: bool = False
    ) -> None:
        self.domain = Space.flat(domain) if isinstance(domain, int) else domain
        codomain = self.domain if codomain is None else codomain
        self.codomain = Space.flat(codomain) if isinstance(codomain, int) else codomain
        self.symmetric = symmetric

    # -- What a subclass says ----------------------------------------------------------------------

    @abstractmethod
    def _matvec(self, v: Tensor) -> Tensor:
        """A v for a flat v of the domain; must not change v."""

    def _rmatvec(self, u: Tensor) -> Tensor:
        """A' u for a flat u of the codomain."""
        if self.symmetric:
            return self._matvec(u)
        raise OperatorError(
            f"{self}.T",
            expected="an operator with an adjoint",
            got=f"{type(self).__name__}, which is not symmetric and has no _rmatvec",
            remedy="Implement _rmatvec(u), or pass symmetric=True if A = A'.",
        )

    def _matmat(self, block: Tensor) -> Tensor:
        """A V for a flat block V of shape (n, k)."""
        return stacked(block.shape[1], map(self._matvec, transposed(block))).T

    def _rmatmat(self, block: Tensor) -> Tensor:
        """A' U for a flat block U of shape (m, k)."""
        if self.symmetric:
            return self._matmat(block)
        return stacked(block.shape[1], map(self._rmatvec, transposed(block))).T

    # -- What everybody uses -----------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.codomain.n, self.domain.n

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the flat vectors."""
        return self.domain.dtype

    @property
    def device(self) -> torch.device:
        """Device of the vectors."""
        return self.domain.device

    def matvec(self, v: Tree) -> Any:
        """A v, shape (m,) for a flat v of shape (n,); a tree for a tree. One product."""
        flat, is_flat = self._enter(v)
        product = self._matvec(flat)
        return product if is_flat else self.codomain.unflatten(product)

    def matmat(self, block: Tensor) -> Tensor:
        """A V, shape (m, k), for V of shape (n, k). k products."""
        call = f"{self}.matmat(V)"
        self.domain.check_vector(block, call=call, what="V", ndim=2)
        if block.shape[1] == 0:
            return block.new_zeros(self.shape[0], 0)
        return self._matmat(block.detach())

    def curvature(self, v: Tree) -> Tensor:
        """v' A v, a float64 scalar tensor. At most one product."""
        self._check_square("curvature")
        flat, _ = self._enter(v)
        return torch.tensor(self._curvature(flat), dtype=torch.float64)

    def _curvature(self, v: Tensor) -> float:
        return self.domain.inner(v, self._matvec(v))

    def to_dense(self) -> Tensor:
        """The matrix, shape (m, n): n products, a debugging object."""
        self.expect(self.domain.n)
        eye = torch.eye(self.domain.n, dtype=self.dtype, device=self.device)
        return self.matmat(eye)

    def to_scipy(self) -> ScipyOperator:
        """The same operator for SciPy, on NumPy vectors (needs the extra hesse[scipy])."""
        return as_scipy(self)

    def __repr__(self) -> str:
        rows, columns = self.shape
        return f"{type(self).__name__.lstrip('_')}({rows} x {columns}, {self.dtype})"

    def expect(self, products: int) -> None:
        """Be told that so many products will follow: a curvature operator prepares accordingly."""
        for part in vars(self).values():
            if isinstance(part, Products):
                part.expect(products)

    # -- Inside ------------------------------------------------------------------------------------

    def _enter(self, v: Tree) -> tuple[Tensor, bool]:
        """The flat vector of v, and whether v was flat."""
        flat, leave = self.domain.enter(v, call=f"{self} @ v")
        return flat, leave != self.domain.unflatten

    def _check_square(self, what: str) -> None:
        rows, columns = self.shape
        if rows != columns:
            raise ShapeError(
                f"{self}.{what}",
                expected="a square operator",
                got=f"shape {self.shape}",
                remedy="Use A.T @ A or A @ A.T.",
            )

    def _check_symmetric(self, call: str, remedy: str = "Pass symmetric=True if A = A'.") -> None:
        if not self.symmetric:
            raise OperatorError(
                call,
                expected="a symmetric operator",
                got="one that is not known to be symmetric",
                remedy=remedy,
            )

    def _check_finite(self, products: Tensor, call: str) -> Tensor:
        """Products with this operator, or an error for NaN and Inf in them."""
        if not all_finite(products):
            raise NonFiniteError(
                call,
                expected="finite products",
                got=f"NaN or Inf in a product with {self}",
                remedy="Check the operator with hesse.testing.check_operator.",
            )
        return products

    def _not_an_operator(self, sign: str, other: Any) -> OperatorError:
        return OperatorError(
            f"{self} {sign} {type(other).__name__}",
            expected="another operator",
            got=f"a {type(other).__name__}",
            remedy="For a multiple c of the identity write A + c * hesse.identity_operator(n); for "
            "a matrix hesse.dense_operator(M).",
        )

    def _not_a_number(self, other: Any) -> OperatorError:
        return OperatorError(
            f"{self} * {type(other).__name__}",
            expected="a number to scale by",
            got=f"a {type(other).__name__}",
            remedy="Use A @ v for a product with a vector, A @ B for one with an operator.",
        )
