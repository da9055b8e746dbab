# SPDX-License-Identifier: Apache-2.0
r"""`ComputedDiagonal`: a diagonal that is neither free nor worth sampling by products.

That of J'BJ is a sum of squares, one for each column of a root of B, and such a column costs less
than a product. Sums, multiples and blocks of operators have the diagonals of their parts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hesse.operators.protocol import OperatorProtocol

VECTORS_OF_A_PRODUCT = 4
"""How many vectors are counted as a product: one takes a third of a gradient, a product 4/3."""


class ComputedDiagonal(ABC):
    """A diagonal as the sum of the contributions of some vectors, or a mean over random ones."""

    @property
    @abstractmethod
    def num_vectors(self) -> int:
        """How many vectors the exact diagonal takes."""

    @property
    @abstractmethod
    def products_a_sample(self) -> int:
        """What one of `samples` costs, in products with the operator."""

    @abstractmethod
    def exact(self) -> Tensor:
        """The diagonal, shape (n,)."""

    @abstractmethod
    def samples(self, count: int, generator: torch.Generator | None) -> list[Tensor]:
        """Independent unbiased estimates, each the mean over `VECTORS_OF_A_PRODUCT` vectors."""

    @property
    @abstractmethod
    def about(self) -> str:
        """What is special about it, such as parameters that take longer; "" for nothing."""

    @property
    def products(self) -> int:
        """What the exact diagonal costs, in products with the operator."""
        return math.ceil(self.num_vectors / VECTORS_OF_A_PRODUCT)


class _Known(ComputedDiagonal):
    """A diagonal that is there."""

    def __init__(self, diagonal: Tensor) -> None:
        self._diagonal = diagonal

    @property
    def num_vectors(self) -> int:
        return 0

    @property
    def products_a_sample(self) -> int:
        return 0

    @property
    def about(self) -> str:
        return ""

    def exact(self) -> Tensor:
        return self._diagonal

    def samples(self, count: int, generator: torch.Generator | None) -> list[Tensor]:
        del generator
        return [self._diagonal] * count


class _Combined(ComputedDiagonal):
    """A linear function of the diagonals of several operators."""

    def __init__(self, parts: Sequence[ComputedDiagonal], combine: Callable[..., Tensor]) -> None:
        self._parts, self._combine = parts, combine

    @property
    def num_vectors(self) -> int:
        return sum(part.num_vectors for part in self._parts)

    @property
    def products_a_sample(self) -> int:
        return sum(part.products_a_sample for part in self._parts)

    @property
    def about(self) -> str:
        return "; ".join(part.about for part in self._parts if part.about)

    def exact(self) -> Tensor:
        return self._combine(*(part.exact() for part in self._parts))

    def samples(self, count: int, generator: torch.Generator | None) -> list[Tensor]:
        samples = [part.samples(count, generator) for part in self._parts]
        return [self._combine(*each) for each in zip(*samples, strict=True)]


def combined(
    operators: Sequence[OperatorProtocol], combine: Callable[..., Tensor]
) -> ComputedDiagonal | None:
    """The diagonal that is a linear function of those of some operators.

    None where one of these has none, and where all are known, so that nothing need be computed.
    """
    parts = []
    for A in operators:
        known = A._diagonal() if A.is_structured else None
        part = A._computed_diagonal() if known is None else _Known(known)
        if part is None:
            return None
        parts.append(part)
    return _Combined(parts, combine) if any(part.products_a_sample for part in parts) else None
