# SPDX-License-Identifier: Apache-2.0
"""What is known of an expression of operators from what is known of its parts.

One class for each kind of expression, which `algebra` combines with its products. The methods are
those of the protocol; each returns None where the parts do not answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from hesse.operators.computed_diagonal import combined
from hesse.operators.kept import kept
from hesse.operators.protocol import OperatorProtocol
from hesse.vectors.places import Where, taken
from hesse.vectors.space import Space

Function = Callable[[Tensor], Tensor]
T = TypeVar("T")


def diagonal_of(D: OperatorProtocol) -> Tensor:
    """The entries of an operator whose `is_diagonal` is true, shape (n,)."""
    d = D._diagonal()
    assert d is not None
    return d


def logdet_of(factors: Tensor, space: Space | None = None) -> tuple[float, float]:
    """The sign and the logarithm of the absolute value of a product of numbers.

    `space`: that of which the numbers are a flat vector, if they are one.
    """
    exact = factors.double()
    negative, zero, log = (exact < 0.0).sum(), (exact == 0.0).sum(), exact.abs().log().sum()
    parts = torch.stack([negative.double(), zero.double(), log])
    negative, zero, log = (parts if space is None else space.total(parts)).tolist()
    return (0.0 if zero else (-1.0) ** negative), log


class SumStructure(OperatorProtocol):
    """Of A + B: where one is diagonal, what `_plus_diagonal` of the other gives."""

    a: Any
    b: Any

    @property
    def is_structured(self) -> bool:
        return self.a.is_structured and self.b.is_structured

    @property
    def is_diagonal(self) -> bool:
        return self.a.is_diagonal and self.b.is_diagonal

    def _orders(self) -> list[tuple[Any, Any]]:
        return [(self.a, self.b), (self.b, self.a)]

    def _shifted(self) -> list[tuple[Any, Any]]:
        """(one term, the other one), where the other one is diagonal."""
        return [(term, other) for term, other in self._orders() if other.is_diagonal]

    def _whole(self) -> Any:
        """A + B as one operator of the structure of a term."""
        # That of a dense matrix takes its memory again.
        return self._kept_whole() if self.is_structured else self._added()

    @kept
    def _kept_whole(self) -> Any:
        return self._added()

    def _added(self) -> Any:
        return _first(term._plus_diagonal(D) for term, D in self._shifted())

    def _inverse(self) -> Any:
        whole = self._whole()
        return self._woodbury() if whole is None else whole._inverse()

    def _woodbury(self) -> Any:
        """The inverse from that of one term, where the other one is of low rank."""
        for term, other in self._orders():
            if other.is_structured and (inverse := term._inverse()) is not None:
                updated = other._updated_inverse(inverse)
                if updated is not None:
                    return updated
        return None

    def _diagonal(self) -> Tensor | None:
        a, b = self.a._diagonal(), self.b._diagonal()
        return None if a is None or b is None else a + b

    def _computed_diagonal(self) -> Any:
        return combined([self.a, self.b], lambda a, b: a + b)

    def _trace(self) -> float | None:
        a, b = self.a._trace(), self.b._trace()
        return None if a is None or b is None else a + b

    def _logdet(self) -> tuple[float, float] | None:
        whole = self._whole()
        return None if whole is None else whole._logdet()

    def _eigenvalues(self) -> Tensor | None:
        whole = self._whole()
        return None if whole is None else whole._eigenvalues()

    def _num_negative(self) -> int | None:
        whole = self._whole()
        return None if whole is None else whole._num_negative()

    def _function(self, f: Function) -> Any:
        whole = self._whole()
        return None if whole is None else whole._function(f)

    def _root(self) -> Any:
        whole = self._whole()
        return None if whole is None else whole._root()

    def _eigen(self) -> tuple[Any, Tensor] | None:
        whole = self._whole()
        return None if whole is None else whole._eigen()

    def _plus_diagonal(self, D: Any) -> Any:
        return _first(term._plus_diagonal(other + D) for term, other in self._shifted())

    def _split_shift(self) -> tuple[Any, float]:
        for term, D in self._shifted():
            c = self.domain.constant(diagonal_of(D))
            if c is not None:
                G, shift = term._split_shift()
                return G, shift + c
        return self, 0.0


class ScaledStructure(OperatorProtocol):
    """Of c A."""

    scalar: float
    a: Any

    @property
    def is_structured(self) -> bool:
        return self.a.is_structured

    @property
    def is_diagonal(self) -> bool:
        return self.a.is_diagonal

    def _inverse(self) -> Any:
        inverse = None if self.scalar == 0.0 else self.a._inverse()
        return None if inverse is None else inverse / self.scalar

    def _diagonal(self) -> Tensor | None:
        diagonal = self.a._diagonal()
        return None if diagonal is None else self.scalar * diagonal

    def _computed_diagonal(self) -> Any:
        return combined([self.a], lambda a: self.scalar * a)

    def _trace(self) -> float | None:
        trace = self.a._trace()
        return None if trace is None else self.scalar * trace

    def _logdet(self) -> tuple[float, float] | None:
        known = self.a._logdet()
        if known is None:
            return None
        n, (sign, log) = self.domain.n, logdet_of(torch.tensor([self.scalar], dtype=torch.float64))
        return known[0] * sign**n, known[1] + n * log

    def _eigenvalues(self) -> Tensor | None:
        values = self.a._eigenvalues()
        return None if values is None else self.scalar * values

    def _num_negative(self) -> int | None:
        return self.a._num_negative() if self.scalar > 0.0 else super()._num_negative()

    def _function(self, f: Function) -> Any:
        return self.a._function(lambda x: f(self.scalar * x))

    def _root(self) -> Any:
        root = self.a._root() if self.scalar >= 0.0 else None
        return None if root is None else math.sqrt(self.scalar) * root

    def _eigen(self) -> tuple[Any, Tensor] | None:
        known = self.a._eigen()
        return None if known is None else (known[0], self.scalar * known[1])

    def _updated_inverse(self, inverse: Any) -> Any:
        """(B + c A)^-1 = ((B / c + A)^-1) / c, with (B / c)^-1 = c B^-1."""
        c = self.scalar
        updated = None if c == 0.0 else self.a._updated_inverse(c * inverse)
        return None if updated is None else updated / c

    def _plus_diagonal(self, D: Any) -> Any:
        whole = None if self.scalar == 0.0 else self.a._plus_diagonal(D / self.scalar)
        return None if whole is None else self.scalar * whole


class ProductStructure(OperatorProtocol):
    """Of A B."""

    a: Any
    b: Any

    @property
    def is_structured(self) -> bool:
        return self.a.is_structured and self.b.is_structured

    @property
    def is_diagonal(self) -> bool:
        return self.a.is_diagonal and self.b.is_diagonal

    def _diagonal(self) -> Tensor | None:
        if not (self.a.is_diagonal or self.b.is_diagonal):
            return None
        a, b = self.a._diagonal(), self.b._diagonal()
        return None if a is None or b is None else a * b

    def _computed_diagonal(self) -> Any:
        if not (self.a.is_diagonal or self.b.is_diagonal):
            return None
        return combined([self.a, self.b], lambda a, b: a * b)

    def _logdet(self) -> tuple[float, float] | None:
        a, b = self.a._logdet(), self.b._logdet()
        return None if a is None or b is None else (a[0] * b[0], a[1] + b[1])

    def _eigenvalues(self) -> Tensor | None:
        return diagonal_of(self).double() if self.is_diagonal else None


class TransposedStructure(OperatorProtocol):
    """Of A'."""

    a: Any

    @property
    def is_structured(self) -> bool:
        return self.a.is_structured

    def _inverse(self) -> Any:
        inverse = self.a._inverse()
        return None if inverse is None else inverse.T

    def _diagonal(self) -> Tensor | None:
        return self.a._diagonal()

    def _computed_diagonal(self) -> Any:
        return self.a._computed_diagonal()

    def _trace(self) -> float | None:
        return self.a._trace()

    def _logdet(self) -> tuple[float, float] | None:
        return self.a._logdet()

    def _squared_entries(self) -> Any:
        squared = self.a._squared_entries()
        return None if squared is None else squared.T

    def _plus_diagonal(self, D: Any) -> Any:
        whole = self.a._plus_diagonal(D)
        return None if whole is None else whole.T


class BlockStructure(OperatorProtocol):
    """Of a diagonal block of A."""

    a: Any
    _range: Where

    @property
    def is_structured(self) -> bool:
        return self.a.is_structured

    def _diagonal(self) -> Tensor | None:
        diagonal = self.a._diagonal()
        return None if diagonal is None else taken(diagonal, self._range)

    def _computed_diagonal(self) -> Any:
        return combined([self.a], lambda a: taken(a, self._range))


class BlocksStructure(OperatorProtocol):
    """Of a block-diagonal matrix, wherever the entries of its blocks lie."""

    blocks: list[Any]

    def _of_all(self, ask: Callable[[Any], T | None]) -> list[T] | None:
        """The answers of all blocks; None unless each has one."""
        answers = []
        for A in self.blocks:
            answer = ask(A)
            if answer is None:
                return None
            answers.append(answer)
        return answers

    def _trace(self) -> float | None:
        parts = self._of_all(lambda A: A._trace())
        return None if parts is None else math.fsum(parts)

    def _logdet(self) -> tuple[float, float] | None:
        parts = self._of_all(lambda A: A._logdet())
        if parts is None:
            return None
        signs, logs = zip(*parts, strict=True)
        return math.prod(signs), math.fsum(logs)

    def _eigenvalues(self) -> Tensor | None:
        parts = self._of_all(lambda A: A._eigenvalues())
        return None if parts is None else torch.cat(parts)

    def _num_negative(self) -> int | None:
        parts = self._of_all(lambda A: A._num_negative())
        return None if parts is None else sum(parts)


def _first(operators: Iterable[Any]) -> Any:
    return next((A for A in operators if A is not None), None)
