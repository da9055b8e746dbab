# SPDX-License-Identifier: Apache-2.0
r"""Sums over vectors u and examples of the squared gradient of one parameter, by its rule.

$$ d_{ij} = \sum_u w_u \sum_n \Big(\sum_{t} l^u_{nti}\, r_{ntj}\Big)^2 $$

with rows l that depend on u and rows r that do not, t the places of example n.

| class | where | cost |
|---|---|---|
| `OneRow`, `OneSum` | an example has one row | sum of l^2 over u first, then one matrix product |
| `OneHotRows` | indices, as of an embedding | sums of l of equal indices, squared |
| `FewRows` | few rows, many vectors | sums of l_t l_s over u first, a product for each t, s |
| `ManyRows` | other weights | the gradients of some examples at a time, for every u |
| `Sums` | biases, norms | sums of rows |

The first two are in `single_rows`, the others in `several_rows`; `batch_squares` chooses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, vmap

from hesse.curvature.kronecker.examples import ExampleMap
from hesse.curvature.kronecker.layout import BlockLayout
from hesse.curvature.kronecker.rows import (
    Rows,
    Values,
    gradient_sums,
    rows_by_example,
    rows_of_a,
    rows_of_a_by_example,
    rows_of_g,
)
from hesse.tracing.uses import Use


@dataclass(frozen=True)
class BlockRows:
    """The rows of one block on one batch: of a weight, perhaps with its bias, or another parameter.

    Args:
        block: its layout.
        a: the operands that do not depend on u.
        maps: the examples of the rows, for each of its uses.
        dtype: of the sums.
    """

    block: BlockLayout
    a: Values
    maps: Sequence[ExampleMap]
    dtype: torch.dtype

    @property
    def uses(self) -> Sequence[Use]:
        """The uses of the parameter."""
        return self.block.uses

    def of_g(self, use: Use, g: Values) -> Tensor:
        """The rows that depend on u."""
        return rows_of_g(use, g, self.a).to(self.dtype)

    def of_a(self, use: Use, g_shape: Sequence[int]) -> Rows:
        """The rows that do not."""
        rows = rows_of_a(use, self.a, g_shape)
        return rows.to(self.dtype) if isinstance(rows, Tensor) else rows

    def by_example(self, use: Use, g: Values, map_: ExampleMap) -> Tensor:
        """The rows of some vectors: (vectors, examples, T, groups, d)."""

        def of_one(operand: Tensor) -> Tensor:
            return rows_by_example(use, {use.g: operand}, self.a, map_)

        return _for_each(of_one, g[use.g]).to(self.dtype)

    def of_a_by_example(self, use: Use, g_shape: Sequence[int], map_: ExampleMap) -> Rows:
        """The rows that do not depend on u: (examples, T, groups, d), with a 1 for the bias."""
        rows = rows_of_a_by_example(use, self.a, g_shape, map_, ones=self.block.has_bias)
        return rows.to(self.dtype) if isinstance(rows, Tensor) else rows

    def sums(self, g: Values) -> Tensor:
        """(vectors, examples, D): the gradients of single examples, of a parameter of D numbers."""

        def of_one(*operands: Tensor) -> Tensor:
            own = dict(zip(numbers, operands, strict=True))
            pairs = zip(self.uses, self.maps, strict=True)
            parts = [gradient_sums(use, own, self.a, map_).to(self.dtype) for use, map_ in pairs]
            return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)

        numbers = list(dict.fromkeys(use.g for use in self.uses))
        return _for_each(of_one, *(g[number] for number in numbers))


class Squares(ABC):
    """The sum over vectors of the squares for one block."""

    def __init__(self, rows: BlockRows) -> None:
        self.rows = rows

    @abstractmethod
    def add(self, g: Values, weights: Sequence[float]) -> None:
        """Add the squares for some vectors u.

        Args:
            g: their operands, with a first dimension for the vectors.
            weights: one for each vector.
        """

    @abstractmethod
    def take(self) -> Tensor:
        """The sum, one entry for each of the block; the next one starts from zero."""


class OfSquaredOperand(ABC):
    """The same where the squares of one operand, summed over vectors, are all that is needed."""

    def __init__(self, rows: BlockRows) -> None:
        self.rows = rows

    @property
    def operand(self) -> int:
        """The number of that operand."""
        return self.rows.uses[0].g

    @abstractmethod
    def add(self, squares: Values, coefficient: float, totals: Sequence[Tensor]) -> None:
        """Add the sums, from the summed squares of operands.

        Args:
            squares: these.
            coefficient: of the sums.
            totals: flat, of the weight and of its bias.
        """


def _for_each(function: Callable[..., Tensor], *blocks: Tensor) -> Tensor:
    """The function of each vector, all at once."""
    if len(blocks[0]) == 1:  # saves the overhead of vmap
        return function(*(block[0] for block in blocks))[None]
    return vmap(function)(*blocks)
