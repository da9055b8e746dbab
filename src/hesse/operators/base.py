# SPDX-License-Identifier: Apache-2.0
"""`LinearOperator`: a matrix that is known by its products, and the algebra of such matrices.

A new operator implements one method, `_matvec`, on flat vectors. Products with trees and blocks,
algebra, conversion and the participation in every solver and estimator follow.

Operators are immutable and lazy: arithmetic builds a new operator and computes nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hesse.errors import OperatorError, ShapeError
from hesse.operators.scipy import as_scipy
from hesse.vectors import Space, Tree, dot

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator as ScipyOperator


class LinearOperator(ABC):
    """A linear map between two spaces of trees.

    Args:
        domain: the space of v in A v: a `Space`, or its dimension n for plain vectors of torch's
            default dtype.
        codomain: the space of A v; None for a square operator on `domain`.
        symmetric: a promise that A = A'; `hesse.testing.check_operator` tests it.

    Subclasses implement `_matvec`, and for an operator that is not symmetric `_rmatvec` if it has
    an adjoint; `_matmat` only where many directions at once are cheaper than one after the other.

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
        return torch.stack([self._matvec(v) for v in block.T.contiguous()], dim=1)

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
        return self.inner(v, self._matvec(v))

    def inner(self, u: Tensor, v: Tensor) -> float:
        """The inner product of two flat vectors, accumulated in float64.

        The only operation of a Krylov method that may have to talk to another process.
        """
        return dot(u, v)

    def inners(self, basis: Tensor, v: Tensor) -> Tensor:
        """The inner products of the rows of `basis`, shape (j, n), with v: shape (j,)."""
        return basis @ v

    def to_dense(self) -> Tensor:
        """The matrix, shape (m, n): n products, a debugging object."""
        self.expect(self.domain.n)
        eye = torch.eye(self.domain.n, dtype=self.dtype, device=self.device)
        return self.matmat(eye)

    def to_scipy(self) -> ScipyOperator:
        """The same operator for SciPy, on NumPy vectors (needs the extra hesse[scipy])."""
        return as_scipy(self)

    # -- Algebra -----------------------------------------------------------------------------------

    @property
    def T(self) -> LinearOperator:
        """The adjoint; a symmetric operator is its own."""
        return self if self.symmetric else _Transposed(self)

    def __matmul__(self, other: Any) -> Any:
        """A @ B for an operator, A @ v for a vector or tree, A @ V for a block (n, k)."""
        if isinstance(other, LinearOperator):
            return _Product(self, other._in_space(self.domain))
        if isinstance(other, Tensor) and other.ndim == 2 and not self._is_point(other):
            return self.matmat(other)
        return self.matvec(other)

    def __add__(self, other: Any) -> LinearOperator:
        """A + B."""
        if not isinstance(other, LinearOperator):
            raise self._not_an_operator("+", other)
        return _Sum(self._in_space(other.domain), other._in_space(self.domain))

    def __sub__(self, other: Any) -> LinearOperator:
        """A - B."""
        if not isinstance(other, LinearOperator):
            raise self._not_an_operator("-", other)
        return self + -1.0 * other

    def __mul__(self, scalar: Any) -> LinearOperator:
        """c A for a number c."""
        if isinstance(scalar, Tensor) and scalar.ndim == 0:
            scalar = float(scalar)
        if not isinstance(scalar, Real):
            raise self._not_a_number(scalar)
        return _Scaled(float(scalar), self)

    __rmul__ = __mul__

    def __truediv__(self, scalar: Any) -> LinearOperator:
        """A / c for a number c."""
        if not isinstance(scalar, (Real, Tensor)):
            raise self._not_a_number(scalar)
        return self * (1.0 / scalar)

    def __neg__(self) -> LinearOperator:
        """-A."""
        return _Scaled(-1.0, self)

    def block(self, name: str) -> LinearOperator:
        """The diagonal block of one leaf, or of all leaves below `name`.

        >>> from hesse.operators import diagonal_operator
        >>> D = diagonal_operator({"a": torch.tensor([1.0]), "b": torch.tensor([2.0, 3.0])})
        >>> D.block("b").to_dense()
        tensor([[2., 0.],
                [0., 3.]])
        """
        return _Block(self, name)

    def __repr__(self) -> str:
        rows, columns = self.shape
        return f"{type(self).__name__.lstrip('_')}({rows} x {columns}, {self.dtype})"

    def expect(self, products: int) -> None:
        """Be told that so many products will follow: a curvature operator prepares accordingly."""
        for part in vars(self).values():
            if isinstance(part, LinearOperator):
                part.expect(products)

    # -- Inside ------------------------------------------------------------------------------------

    def _in_space(self, space: Space) -> LinearOperator:
        """This operator, on `space` if it is one that fits any space of its dimension."""
        return self

    def _enter(self, v: Tree) -> tuple[Tensor, bool]:
        """The flat vector of v, and whether v was flat."""
        flat, leave = self.domain.enter(v, call=f"{self} @ v")
        return flat, leave != self.domain.unflatten

    def _is_point(self, v: Tensor) -> bool:
        """Whether v looks like x itself, where x is a single tensor."""
        return self.domain.template is None and v.shape == self.domain.shapes[0]

    def _check_square(self, what: str) -> None:
        rows, columns = self.shape
        if rows != columns:
            raise ShapeError(
                f"{self}.{what}",
                expected="a square operator",
                got=f"shape {self.shape}",
                remedy="Use A.T @ A or A @ A.T.",
            )

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


# --------------------------------------------------------------------------------------------------
# The algebra: one small class for each expression


class _Sum(LinearOperator):
    """A + B."""

    def __init__(self, a: LinearOperator, b: LinearOperator) -> None:
        call = f"{a} + {b}"
        domain = a.domain.common(b.domain, call)
        codomain = a.codomain.common(b.codomain, call)
        super().__init__(domain, codomain, symmetric=a.symmetric and b.symmetric)
        self.a, self.b = a, b

    def _matvec(self, v: Tensor) -> Tensor:
        return self.a._matvec(v) + self.b._matvec(v)

    def _rmatvec(self, u: Tensor) -> Tensor:
        return self.a._rmatvec(u) + self.b._rmatvec(u)

    def _matmat(self, block: Tensor) -> Tensor:
        return self.a._matmat(block) + self.b._matmat(block)

    def _curvature(self, v: Tensor) -> float:
        return self.a._curvature(v) + self.b._curvature(v)

    def inner(self, u: Tensor, v: Tensor) -> float:
        return self.a.inner(u, v)

    def inners(self, basis: Tensor, v: Tensor) -> Tensor:
        return self.a.inners(basis, v)

    def _in_space(self, space: Space) -> LinearOperator:
        return _Sum(self.a._in_space(space), self.b._in_space(space))


class _Scaled(LinearOperator):
    """c A."""

    def __init__(self, scalar: float, a: LinearOperator) -> None:
        super().__init__(a.domain, a.codomain, symmetric=a.symmetric)
        self.scalar, self.a = scalar, a

    def _matvec(self, v: Tensor) -> Tensor:
        return self.scalar * self.a._matvec(v)

    def _rmatvec(self, u: Tensor) -> Tensor:
        return self.scalar * self.a._rmatvec(u)

    def _matmat(self, block: Tensor) -> Tensor:
        return self.scalar * self.a._matmat(block)

    def _curvature(self, v: Tensor) -> float:
        return self.scalar * self.a._curvature(v)

    def inner(self, u: Tensor, v: Tensor) -> float:
        return self.a.inner(u, v)

    def inners(self, basis: Tensor, v: Tensor) -> Tensor:
        return self.a.inners(basis, v)

    def _in_space(self, space: Space) -> LinearOperator:
        return _Scaled(self.scalar, self.a._in_space(space))


class _Product(LinearOperator):
    """A B."""

    def __init__(self, a: LinearOperator, b: LinearOperator) -> None:
        a = a._in_space(b.codomain)
        a.domain.common(b.codomain, f"{a} @ {b}")
        super().__init__(b.domain, a.codomain, symmetric=a.T is b or b.T is a)  # A'A, A A', A A
        self.a, self.b = a, b

    def _matvec(self, v: Tensor) -> Tensor:
        return self.a._matvec(self.b._matvec(v))

    def _rmatvec(self, u: Tensor) -> Tensor:
        return self.b._rmatvec(self.a._rmatvec(u))

    def _matmat(self, block: Tensor) -> Tensor:
        return self.a._matmat(self.b._matmat(block))

    def inner(self, u: Tensor, v: Tensor) -> float:
        return self.b.inner(u, v)

    def inners(self, basis: Tensor, v: Tensor) -> Tensor:
        return self.b.inners(basis, v)


class _Transposed(LinearOperator):
    """A'."""

    def __init__(self, a: LinearOperator) -> None:
        super().__init__(a.codomain, a.domain)
        self.a = a

    def _matvec(self, v: Tensor) -> Tensor:
        return self.a._rmatvec(v)

    def _rmatvec(self, u: Tensor) -> Tensor:
        return self.a._matvec(u)

    @property
    def T(self) -> LinearOperator:
        return self.a


class _Block(LinearOperator):
    """The rows and columns of A that belong to the leaves below a name."""

    def __init__(self, a: LinearOperator, name: str) -> None:
        a._check_square("block")
        space, self._range = a.domain.subspace(name, call=f"{a}.block({name!r})")
        super().__init__(space, symmetric=a.symmetric)
        self.a = a

    def _matvec(self, v: Tensor) -> Tensor:
        return self.a._matvec(self._embed(v))[self._range]

    def _rmatvec(self, u: Tensor) -> Tensor:
        return self.a._rmatvec(self._embed(u))[self._range]

    def _curvature(self, v: Tensor) -> float:
        return self.a._curvature(self._embed(v))

    def _embed(self, v: Tensor) -> Tensor:
        full = self.a.domain.zeros()
        full[self._range] = v
        return full
