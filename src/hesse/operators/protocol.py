# SPDX-License-Identifier: Apache-2.0
"""The operator protocol: what an operator implements, and what solvers and estimators call.

Everything here is on flat vectors (n,), (m,) and blocks (n, k), (m, k) of the operator's dtype and
device, without autograd graphs. Only `_matvec` must be written. The other methods have defaults; a
subclass overrides one where it knows better. All may be called by any algorithm of the library.

| method | computes | default |
|---|---|---|
| `_matvec(v)` | A v | to be written |
| `_rmatvec(u)` | A' u | A u for a symmetric operator, else an error |
| `_matmat(V)` | A V | column by column |
| `_rmatmat(U)` | A' U | column by column |
| `_curvature(v)` | v' A v, a float | one product and an inner product |
| `_inverse()` | the exact inverse where structure makes it cheap | None |
| `_diagonal()` | the exact diagonal where it takes no product | None |
| `_computed_diagonal()` | how it is computed for less than products with random signs | None |
| `_plus_diagonal(D)` | A + D as one operator of the structure of A | None |
| `_trace()` | the exact trace where structure gives it | the sum of `_diagonal` |
| `_logdet()` | (sign of det A, log of its absolute value), likewise | None |
| `_eigenvalues()` | all eigenvalues of a symmetric A, in float64, likewise | None |
| `_num_negative()` | the number of its negative eigenvalues | from `_eigenvalues` |
| `_function(f)` | f(A) of a symmetric A; f maps eigenvalues in float64 | None |
| `_root()` | R with A = R R' of a positive definite A, likewise | None |
| `_eigen()` | (Q, w) with A = Q diag(w) Q' of a symmetric A, likewise | None |
| `_squared_entries()` | the operator of the squares of the entries, likewise | None |
| `_updated_inverse(X)` | (B + A)^-1 as an operator, from X = B^-1, where A is of low rank | None |
| `is_structured` | whether estimators ask these methods before they sample | False |
| `_written()` | what changes when a matrix in A is written to | that of the operators in A |
| `_principal(space, where)` | some rows and the same columns of A | lazily, from products with A |
| `_compressed(Q)` | Q' A Q for the columns of a matrix Q | likewise |
| `_split_shift()` | (G, c) with A = G + c I | (A, 0) |
| `_times(B)` | A B | the lazy product |
| `_expand()` | A as a sum of products of operators (see terms.py) | None |
| `_terms()` | the same, of one factor where A is no such sum | from `_expand` |
| `_in_space(space)` | this operator on another space of its dimension | itself |
| `_expression()` | a name or formula, for `repr` | the name of the class |
| `_title()` | the same with shape and dtype, in one line | from `_expression` |
| `_details()` | rows (name, text) about the matrices in it, for `repr` | of the operators in A |
| `is_diagonal` | whether `_diagonal()` is all of A | False |
| `announce(products)` | nothing: that many products follow | passed on to the operators in A |

Results may share memory with the argument, which must not be changed (see `vectors.unshared`).
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from hesse.errors import OperatorError
from hesse.operators.terms import Terms, are_symmetric, factor
from hesse.operators.to_scipy import check_not_asked_by_scipy
from hesse.vectors.places import Where
from hesse.vectors.rows import stacked, transposed
from hesse.vectors.space import Space

_LONGEST = 60  # characters of the expression in a repr


class OperatorProtocol(ABC):
    """A linear map between two spaces; `LinearOperator` documents the arguments."""

    def __init__(
        self, domain: Space | int, codomain: Space | int | None = None, *, symmetric: bool = False
    ) -> None:
        self.domain = Space.flat(domain) if isinstance(domain, int) else domain
        codomain = self.domain if codomain is None else codomain
        self.codomain = Space.flat(codomain) if isinstance(codomain, int) else codomain
        self.symmetric = symmetric

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n): the dimensions of `codomain` and `domain`."""
        return self.codomain.n, self.domain.n

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the flat vectors."""
        check_not_asked_by_scipy(self, sys._getframe(1))
        return self.domain.dtype

    @property
    def device(self) -> torch.device:
        """Device of the vectors."""
        return self.domain.device

    # -- Products ----------------------------------------------------------------------------------

    @abstractmethod
    def _matvec(self, v: Tensor) -> Tensor:
        """A v for a flat v of the domain; must not change v."""

    def _rmatvec(self, u: Tensor) -> Tensor:
        """A' u for a flat u of the codomain."""
        if self.symmetric:
            return self._matvec(u)
        raise OperatorError(
            expected="an operator with an adjoint",
            got=f"{self._title()}, which is not symmetric and has no _rmatvec",
            remedy="Implement _rmatvec(u), or pass symmetric=True if A = A'.",
        )

    def _matmat(self, block: Tensor) -> Tensor:
        """A V for a block V of shape (n, k)."""
        return stacked(block.shape[1], map(self._matvec, transposed(block))).T

    def _rmatmat(self, block: Tensor) -> Tensor:
        """A' U for a block U of shape (m, k)."""
        if self.symmetric:
            return self._matmat(block)
        return stacked(block.shape[1], map(self._rmatvec, transposed(block))).T

    def _curvature(self, v: Tensor) -> float:
        """v' A v for a square operator."""
        return self.domain.inner(v, self._matvec(v))

    def announce(self, products: int) -> None:
        """Tell the operator that about so many products will follow.

        Changes no result. An operator that can prepare itself (a curvature operator records a
        program for its products) decides by this number whether that pays.
        """
        for part in vars(self).values():
            if isinstance(part, OperatorProtocol):
                part.announce(products)

    # -- Structure ---------------------------------------------------------------------------------
    # Those that return operators are of type Any: `LinearOperator` is a subclass of this class.

    def _inverse(self) -> Any:
        """The exact inverse if structure makes it cheap; None elsewhere, and for a singular A.

        Symmetric where A is. A number that is zero or not finite on the way counts as singular.
        """
        return None

    def _diagonal(self) -> Tensor | None:
        """The exact diagonal, shape (n,), where it takes no product; None elsewhere."""
        return None

    def _computed_diagonal(self) -> Any:
        """The `ComputedDiagonal` of A, where that costs less than sampling; None elsewhere."""
        return None

    def _plus_diagonal(self, D: Any) -> Any:
        """A + D for a diagonal operator D, as one operator of the structure of A; None without one.

        All that a sum A + D needs to be inverted.
        """
        return None

    @property
    def is_structured(self) -> bool:
        """Whether structure answers what estimators ask, so that nothing is sampled.

        False for a dense matrix, although its methods answer: what is done to it is a trial of what
        will be done to an operator.
        """
        return False

    def _trace(self) -> float | None:
        """The exact trace, where it takes no product; None elsewhere."""
        diagonal = self._diagonal()
        return None if diagonal is None else self.domain.inner(torch.ones_like(diagonal), diagonal)

    def _logdet(self) -> tuple[float, float] | None:
        """The sign of det A and log |det A| where they take no product; None elsewhere."""
        return None

    def _eigenvalues(self) -> Tensor | None:
        """All eigenvalues of a symmetric A in any order, (n,), float64; None where not known."""
        return None

    def _num_negative(self) -> int | None:
        """How many eigenvalues of a symmetric A are negative; None where that is not known."""
        values = self._eigenvalues()
        return None if values is None else int((values < 0.0).sum())

    def _function(self, f: Callable[[Tensor], Tensor]) -> Any:
        """f(A) of a symmetric A, where f maps float64 eigenvalues; None where not known."""
        return None

    def _root(self) -> Any:
        """R with A = R R' of a positive definite A, where there is one but no `_function`."""
        return None

    def _eigen(self) -> tuple[Any, Tensor] | None:
        """(Q, w) with A = Q diag(w) Q', Q an orthogonal operator; None where not known."""
        return None

    def _squared_entries(self) -> Any:
        """The operator of the entries a_ij^2, where it is of the structure of A; None elsewhere."""
        return None

    def _updated_inverse(self, inverse: Any) -> Any:
        """The inverse of B + A from that of B, where A is of low rank; None elsewhere."""
        return None

    def _written(self) -> Hashable:
        """What changes when a matrix in A is written to, so that what is kept of A is void."""
        lists = (v if isinstance(v, list) else [v] for v in vars(self).values())
        parts = (part for parts in lists for part in parts if isinstance(part, OperatorProtocol))
        return tuple(part._written() for part in parts)

    @abstractmethod
    def _principal(self, space: Space, where: Where) -> Any:
        """The rows and columns `where` of A, as an operator on `space`."""

    @abstractmethod
    def _compressed(self, Q: Tensor) -> Any:
        """Q' A Q for a matrix Q (n, k), as an operator on flat vectors (k,)."""

    def _split_shift(self) -> tuple[Any, float]:
        """(G, c) where A is known to be G + c I; (A, 0) elsewhere."""
        return self, 0.0

    def _expand(self) -> Terms | None:
        """This operator as a sum of products of others; None where it is none."""
        return None

    def _terms(self) -> Terms:
        """As `_expand`; one factor where A is no expression, or is too long."""
        expanded = self._expand()
        if expanded is None or (self.symmetric and not are_symmetric(expanded)):
            return factor(id(self), symmetric=self.symmetric)
        return expanded

    def _in_space(self, space: Space) -> Any:
        """This operator, on `space` if it is one that fits every space of its dimension."""
        return self

    @abstractmethod
    def _times(self, B: Any) -> Any:
        """The product A B of two operators, as one; `LinearOperator` implements it."""

    @property
    def is_diagonal(self) -> bool:
        """Whether A is known to be a diagonal matrix; then `_diagonal` gives it."""
        return False

    def _expression(self) -> str:
        """A short name, or the expression of operators that this one is."""
        return type(self).__name__.lstrip("_")

    def _title(self) -> str:
        """The expression, the shape and the dtype, in one line."""
        rows, columns = self.shape
        name = self._expression()
        name = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."
        return f"{name}({rows} x {columns}, {self.domain.dtype})"

    def _details(self) -> tuple[tuple[str, str], ...]:
        """For each matrix in the expression its name, and what it is; each only once."""
        parts = (part for part in vars(self).values() if isinstance(part, OperatorProtocol))
        return tuple(dict.fromkeys(row for part in parts for row in part._details()))
