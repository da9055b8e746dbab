# SPDX-License-Identifier: Apache-2.0
"""`RowLayout`: how vectors of which every summand has a slice lie in one vector.

The outputs of a model on several batches are concatenated along their first dimension, leaf by leaf
of the tree that the model gives. A flat vector over all batches has the leaves one after the other,
so a batch has a range of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hesse.ad.jacobian import other_outputs
from hesse.errors import ShapeError
from hesse.vectors.space import Space


@dataclass(frozen=True)
class RowLayout:
    """The slices of the summands, in their order.

    >>> two, one = (Space.of({"z": torch.zeros(n, 2)}) for n in (2, 1))
    >>> layout = RowLayout.of([two, one])
    >>> layout.space.shapes, layout.take(torch.arange(6.0), 1)
    ((torch.Size([3, 2]),), tensor([4., 5.]))
    """

    space: Space
    slices: tuple[Space, ...]

    @property
    def is_sum(self) -> bool:
        """Whether there is a single summand."""
        return len(self.slices) == 1

    @staticmethod
    def of(slices: Sequence[Space]) -> RowLayout:
        """The layout of spaces that differ in the first dimension of their leaves."""
        first = slices[0]
        if len(slices) == 1:
            return RowLayout(first, (first,))
        for space in slices:
            rows = [shape[:1] for shape in space.shapes]
            same = space.names == first.names and space.dtypes == first.dtypes
            tails = [shape[1:] for shape in first.shapes]
            if not same or () in rows or [shape[1:] for shape in space.shapes] != tails:
                raise ShapeError(
                    expected="batches whose tensors differ in the first dimension only, so that "
                    "they can be concatenated",
                    got=f"{first.describe()}; then {space.describe()}",
                    remedy="Give one batch, or pad what differs; a scalar for a batch cannot be "
                    "concatenated: give it the shape (1,).",
                )
        sizes = [sum(space.shapes[k][0] for space in slices) for k in range(len(first.shapes))]
        shapes = tuple(
            torch.Size((n, *shape[1:])) for n, shape in zip(sizes, first.shapes, strict=True)
        )
        return RowLayout(replace(first, shapes=shapes), tuple(slices))

    def take(self, vector: Tensor, index: int) -> Tensor:
        """The slice of one summand, flat, of a vector or of the rows of a block."""
        if len(self.slices) == 1:
            return vector
        return torch.cat([vector[..., a:b] for a, b in self._ranges(index)], dim=-1)

    def check(self, part: Tensor, index: int) -> None:
        """Raise if a result of a summand has another length than at the start."""
        if part.shape[-1] != self.slices[index].size:
            raise other_outputs(part.shape[-1], self.slices[index].size)

    def store(
        self, total: Tensor, index: int, part: Tensor, coefficient: float, *, first: bool
    ) -> None:
        """Write coefficient * part into the slice of one summand."""
        sizes = self.slices[index].sizes
        for (a, b), piece in zip(self._ranges(index), part.split(sizes, dim=-1), strict=True):
            torch.mul(piece, coefficient, out=total[..., a:b])

    def _ranges(self, index: int) -> list[tuple[int, int]]:
        """Where the leaves of a slice lie in a flat vector."""
        ranges, start = [], 0
        for k, size in enumerate(self.space.sizes):
            before = sum(space.sizes[k] for space in self.slices[:index])
            ranges.append((start + before, start + before + self.slices[index].sizes[k]))
            start += size
        return ranges
