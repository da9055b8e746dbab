# SPDX-License-Identifier: Apache-2.0
"""Block-diagonal matrices whose blocks act on entries of the vector that need not be neighbours."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.operators.algebra import LinearOperator
from hesse.operators.diagonal import DiagonalOperator
from hesse.operators.structure import BlocksStructure, diagonal_of
from hesse.vectors.space import Space


class Place(ABC):
    """Where the entries of a block lie in a flat vector (n,), or in the rows of a block (n, k)."""

    @abstractmethod
    def take(self, v: Tensor) -> Tensor:
        """The entries of the block, in its own order."""

    @abstractmethod
    def put(self, v: Tensor, part: Tensor) -> None:
        """Write the entries of the block into v."""


@dataclass(frozen=True)
class Range(Place):
    """Neighbours, from start to stop."""

    start: int
    stop: int

    def take(self, v: Tensor) -> Tensor:
        return v[self.start : self.stop]

    def put(self, v: Tensor, part: Tensor) -> None:
        v[self.start : self.stop] = part


@dataclass(frozen=True)
class WithColumn(Place):
    """The matrix [W b], row by row, where W (rows, columns) and b lie at two ranges."""

    W: Range
    b: Range

    def take(self, v: Tensor) -> Tensor:
        W, b = self.W.take(v), self.b.take(v)
        rows, rest = len(b), v.shape[1:]
        return torch.cat([W.view(rows, -1, *rest), b[:, None]], dim=1).view(-1, *rest)

    def put(self, v: Tensor, part: Tensor) -> None:
        rows, rest = self.b.stop - self.b.start, v.shape[1:]
        matrix = part.reshape(rows, -1, *rest)
        self.W.put(v, matrix[:, :-1].reshape(-1, *rest))
        self.b.put(v, matrix[:, -1])


@dataclass(frozen=True, eq=False)
class Indexed(Place):
    """Any entries."""

    index: Tensor

    def take(self, v: Tensor) -> Tensor:
        return v[self.index.to(v.device)]

    def put(self, v: Tensor, part: Tensor) -> None:
        v[self.index.to(v.device)] = part


class PlacedBlocks(BlocksStructure, LinearOperator):
    """The sum of the blocks, each on its entries; all entries must belong to exactly one block.

    Args:
        space: of the whole.
        blocks: symmetric operators on flat vectors.
        places: where each lies.
    """

    def __init__(
        self, space: Space, blocks: Sequence[LinearOperator], places: Sequence[Place]
    ) -> None:
        super().__init__(space, symmetric=True)
        self.blocks, self.places = list(blocks), list(places)

    def _matvec(self, v: Tensor) -> Tensor:
        result = torch.empty_like(v)
        for A, place in zip(self.blocks, self.places, strict=True):
            place.put(result, A._matvec(place.take(v).contiguous()))
        return result

    def _matmat(self, block: Tensor) -> Tensor:
        result = torch.empty_like(block)
        for A, place in zip(self.blocks, self.places, strict=True):
            place.put(result, A._matmat(place.take(block)))
        return result

    def _inverse(self) -> LinearOperator | None:
        return self.map(lambda A: A._inverse())

    def _function(self, f: Callable[[Tensor], Tensor]) -> LinearOperator | None:
        """f(A), block by block."""
        return self.map(lambda A: A._function(f))

    def _diagonal(self) -> Tensor | None:
        result = self.domain.zeros()
        for A, place in zip(self.blocks, self.places, strict=True):
            diagonal = A._diagonal()
            if diagonal is None:
                return None
            place.put(result, diagonal)
        return result

    def _plus_diagonal(self, D: LinearOperator) -> LinearOperator:
        d, places = diagonal_of(D), iter(self.places)
        space = self.domain.common(D.domain)
        sums = [A + DiagonalOperator(A.domain, next(places).take(d)) for A in self.blocks]
        return PlacedBlocks(space, sums, self.places)

    def map(
        self, function: Callable[[LinearOperator], LinearOperator | None]
    ) -> PlacedBlocks | None:
        """The operator of function(A) for every block A; None if one is None."""
        blocks = self._of_all(function)
        return None if blocks is None else PlacedBlocks(self.domain, blocks, self.places)

    @property
    def is_structured(self) -> bool:
        return True

    @property
    def is_diagonal(self) -> bool:
        return all(A.is_diagonal for A in self.blocks)
