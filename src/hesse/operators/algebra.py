# SPDX-License-Identifier: Apache-2.0
"""`LinearOperator`: a matrix that is known by its products, and the algebra of such matrices.

Operators are immutable and lazy: arithmetic builds a new operator and computes nothing. protocol.py
documents what a subclass implements, products.py and parts.py what a user calls.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hesse.boundary import public
from hesse.operators import structure, terms
from hesse.operators.operands import divisor, not_an_operator, number
from hesse.operators.parts import Parts
from hesse.operators.terms import Terms
from hesse.vectors.places import Where, embedded, taken
from hesse.vectors.space import Space


class LinearOperator(Parts):
    """A linear map A between two spaces of trees, which is known by its products.

    Args:
        domain: the space of v in A v: a `Space`, or its dimension n for plain vectors of torch's
            default dtype.
        codomain: the space of A v; None for a square operator on `domain`.
        symmetric: a promise that A = A'; `hesse.testing.check_operator` tests it.

    Attributes:
        domain: the `Space` of v in A v.
        codomain: the `Space` of A v.
        symmetric: whether A is known to be symmetric.

    A subclass implements `_matvec` on flat vectors, and takes part in every solver and estimator.
    For an operator that is not symmetric it implements `_rmatvec` if there is an adjoint; `_matmat`
    and `_rmatmat` only if many directions at once are cheaper than one after the other; the methods
    for structure (`_inverse`, `_diagonal`, ...; see `hesse.operators.protocol`) if A has any.

    >>> import torch
    >>> class Laplacian(LinearOperator):
    ...     def _matvec(self, v):
    ...         return torch.nn.functional.conv1d(
    ...             v[None, None], torch.tensor([[[-1.0, 2.0, -1.0]]]), padding=1)[0, 0]
    >>> A = Laplacian(3, symmetric=True)
    >>> (A + 2 * A.T).to_dense()
    tensor([[ 6., -3.,  0.],
            [-3.,  6., -3.],
            [ 0., -3.,  6.]])
    """

    # -- Algebra -----------------------------------------------------------------------------------

    @property
    def T(self) -> LinearOperator:
        """The adjoint A', shape (n, m); a symmetric operator itself. No product."""
        return self if self.symmetric else _Transposed(self)

    def _times(self, B: LinearOperator) -> LinearOperator:
        return _Product(self, B._in_space(self.domain))

    @public("{self} + {other}", nested=False)
    def __add__(self, other: Any) -> LinearOperator:
        """A + B."""
        if not isinstance(other, LinearOperator):
            raise not_an_operator(other)
        return _Sum(self._in_space(other.domain), other._in_space(self.domain))

    @public("{other} + {self}", nested=False)
    def __radd__(self, other: Any) -> LinearOperator:
        """0 + A is A, so that `sum` takes operators."""
        if isinstance(other, int) and other == 0:
            return self
        raise not_an_operator(other)

    @public("{self} - {other}", nested=False)
    def __sub__(self, other: Any) -> LinearOperator:
        """A - B."""
        if not isinstance(other, LinearOperator):
            raise not_an_operator(other)
        return self + -1.0 * other

    @public("{self} * {scalar}", nested=False)
    def __mul__(self, scalar: Any) -> LinearOperator:
        """c A for a number c."""
        return _Scaled(number(scalar), self)

    __rmul__ = __mul__

    @public("{self} / {scalar}", nested=False)
    def __truediv__(self, scalar: Any) -> LinearOperator:
        """A / c for a number c, as (1 / c) A with 1 / c in float64."""
        return _Scaled(1.0 / divisor(scalar), self)

    def __neg__(self) -> LinearOperator:
        """-A."""
        return _Scaled(-1.0, self)

    def _principal(self, space: Space, where: Where) -> LinearOperator:
        return _Block(self, space, where)

    def _compressed(self, Q: Tensor) -> LinearOperator:
        return _Compression(self, Q)


# --------------------------------------------------------------------------------------------------
# The algebra: one small class for each expression


class _Sum(structure.SumStructure, LinearOperator):
    """A + B."""

    def __init__(self, a: LinearOperator, b: LinearOperator) -> None:
        domain, codomain = a.domain.common(b.domain), a.codomain.common(b.codomain)
        super().__init__(domain, codomain, symmetric=a.symmetric and b.symmetric)
        self.a, self.b = a, b
        self.symmetric = self.symmetric or terms.are_symmetric(self._expand())

    def _expression(self) -> str:
        return f"({self.a._expression()} + {self.b._expression()})"

    def _matvec(self, v: Tensor) -> Tensor:
        return self.a._matvec(v) + self.b._matvec(v)

    def _rmatvec(self, u: Tensor) -> Tensor:
        return self.a._rmatvec(u) + self.b._rmatvec(u)

    def _matmat(self, block: Tensor) -> Tensor:
        return self.a._matmat(block) + self.b._matmat(block)

    def _rmatmat(self, block: Tensor) -> Tensor:
        return self.a._rmatmat(block) + self.b._rmatmat(block)

    def _curvature(self, v: Tensor) -> float:
        return self.a._curvature(v) + self.b._curvature(v)

    def _expand(self) -> Terms | None:
        return terms.added(self.a._terms(), self.b._terms())

    def _in_space(self, space: Space) -> LinearOperator:
        a, b = self.a._in_space(space), self.b._in_space(space)
        return self if a is self.a or b is self.b else _Sum(a, b)  # one that stays holds the other

    def _principal(self, space: Space, where: Where) -> LinearOperator:
        return self.a._principal(space, where) + self.b._principal(space, where)

    def _compressed(self, Q: Tensor) -> LinearOperator:
        return self.a._compressed(Q) + self.b._compressed(Q)


class _Scaled(structure.ScaledStructure, LinearOperator):
    """c A."""

    def __init__(self, scalar: float, a: LinearOperator) -> None:
        super().__init__(a.domain, a.codomain, symmetric=a.symmetric)
        self.scalar, self.a = scalar, a

    def _expression(self) -> str:
        return f"{self.scalar:g} {self.a._expression()}"

    def _matvec(self, v: Tensor) -> Tensor:
        return self.scalar * self.a._matvec(v)

    def _rmatvec(self, u: Tensor) -> Tensor:
        return self.scalar * self.a._rmatvec(u)

    def _matmat(self, block: Tensor) -> Tensor:
        return self.scalar * self.a._matmat(block)

    def _rmatmat(self, block: Tensor) -> Tensor:
        return self.scalar * self.a._rmatmat(block)

    def _curvature(self, v: Tensor) -> float:
        return self.scalar * self.a._curvature(v)

    def _expand(self) -> Terms | None:
        return terms.scaled(self.scalar, self.a._terms())

    def _in_space(self, space: Space) -> LinearOperator:
        a = self.a._in_space(space)
        return self if a is self.a else _Scaled(self.scalar, a)

    def _principal(self, space: Space, where: Where) -> LinearOperator:
        return self.scalar * self.a._principal(space, where)

    def _compressed(self, Q: Tensor) -> LinearOperator:
        return self.scalar * self.a._compressed(Q)


class _Product(structure.ProductStructure, LinearOperator):
    """A B; `symmetric` where that is known of it as a whole."""

    def __init__(self, a: LinearOperator, b: LinearOperator, *, symmetric: bool = False) -> None:
        a = a._in_space(b.codomain)
        a.domain.common(b.codomain)
        super().__init__(b.domain, a.codomain, symmetric=symmetric)
        self.a, self.b = a, b
        self.symmetric = symmetric or self.is_diagonal or terms.are_symmetric(self._expand())

    def _expression(self) -> str:
        return f"{self.a._expression()} @ {self.b._expression()}"

    def _matvec(self, v: Tensor) -> Tensor:
        return self.a._matvec(self.b._matvec(v))

    def _rmatvec(self, u: Tensor) -> Tensor:
        return self.b._rmatvec(self.a._rmatvec(u))

    def _matmat(self, block: Tensor) -> Tensor:
        return self.a._matmat(self.b._matmat(block))

    def _rmatmat(self, block: Tensor) -> Tensor:
        return self.b._rmatmat(self.a._rmatmat(block))

    def _expand(self) -> Terms | None:
        return terms.multiplied(self.a._terms(), self.b._terms())

    def _in_space(self, space: Space) -> LinearOperator:
        a, b = self.a._in_space(space), self.b._in_space(space)
        fixed = a is self.a or b is self.b
        return self if fixed else _Product(a, b, symmetric=self.symmetric)

    def _inverse(self) -> LinearOperator | None:
        right = self.a._inverse()
        if right is None:
            return None
        # In B'B one inverse serves both sides.
        mirrored = terms.adjoint(self.b._terms()) == self.a._terms()
        left = right.T if mirrored else self.b._inverse()
        return None if left is None else _Product(left, right, symmetric=self.symmetric)


class _Transposed(structure.TransposedStructure, LinearOperator):
    """A'."""

    def __init__(self, a: LinearOperator) -> None:
        super().__init__(a.codomain, a.domain)
        self.a = a

    def _expression(self) -> str:
        return f"{self.a._expression()}.T"

    def _matvec(self, v: Tensor) -> Tensor:
        return self.a._rmatvec(v)

    def _rmatvec(self, u: Tensor) -> Tensor:
        return self.a._matvec(u)

    def _matmat(self, block: Tensor) -> Tensor:
        return self.a._rmatmat(block)

    def _rmatmat(self, block: Tensor) -> Tensor:
        return self.a._matmat(block)

    @property
    def T(self) -> LinearOperator:
        return self.a

    def _principal(self, space: Space, where: Where) -> LinearOperator:
        return self.a._principal(space, where).T

    def _compressed(self, Q: Tensor) -> LinearOperator:
        return self.a._compressed(Q).T

    def _expand(self) -> Terms | None:
        return terms.adjoint(self.a._terms())

    def _in_space(self, space: Space) -> LinearOperator:
        a = self.a._in_space(space)
        return self if a is self.a else _Transposed(a)


class _Block(structure.BlockStructure, LinearOperator):
    """Some rows of A and the same columns."""

    def __init__(self, a: LinearOperator, space: Space, where: Where) -> None:
        super().__init__(space, symmetric=a.symmetric)
        self.a, self._range = a, where

    def _expand(self) -> Terms | None:
        whole = tuple(self.a._terms().items())
        return terms.factor((terms.of_entries(self._range), whole), symmetric=self.symmetric)

    def _expression(self) -> str:
        whole, names = self.a._expression(), self.domain.names
        if self.domain.is_flat and names == ("",):
            return f"{whole}.restrict({self.domain.n} entries)"
        return f"{whole}.block({names[0]!r}{', ...' if len(names) > 1 else ''})"

    def _matvec(self, v: Tensor) -> Tensor:
        return taken(self.a._matvec(self._embed(v)), self._range)

    def _rmatvec(self, u: Tensor) -> Tensor:
        return taken(self.a._rmatvec(self._embed(u)), self._range)

    def _matmat(self, block: Tensor) -> Tensor:
        return taken(self.a._matmat(self._embed(block)), self._range)

    def _rmatmat(self, block: Tensor) -> Tensor:
        return taken(self.a._rmatmat(self._embed(block)), self._range)

    def _curvature(self, v: Tensor) -> float:
        return self.a._curvature(self._embed(v))

    def _embed(self, v: Tensor) -> Tensor:
        """A vector or a block with zeros in the other entries."""
        return embedded(v, self._range, self.a.domain)


class _Compression(LinearOperator):
    """Q' A Q for the columns of a matrix Q."""

    def __init__(self, a: LinearOperator, Q: Tensor) -> None:
        super().__init__(Space.flat(Q.shape[1], a.dtype, a.device), symmetric=a.symmetric)
        self.a, self.Q = a, Q

    def _expression(self) -> str:
        return f"{self.a._expression()}.project({self.Q.shape[1]} columns)"

    def _matvec(self, v: Tensor) -> Tensor:
        return self._along(self.a._matvec(self.Q @ v))

    def _rmatvec(self, u: Tensor) -> Tensor:
        return self._along(self.a._rmatvec(self.Q @ u))

    def _matmat(self, block: Tensor) -> Tensor:
        return self._along(self.a._matmat(self.Q @ block))

    def _rmatmat(self, block: Tensor) -> Tensor:
        return self._along(self.a._rmatmat(self.Q @ block))

    def _curvature(self, v: Tensor) -> float:
        return self.a._curvature(self.Q @ v)

    def _along(self, products: Tensor) -> Tensor:
        """Q' times products."""
        return self.a.domain.total(self.Q.T @ products)
