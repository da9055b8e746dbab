# SPDX-License-Identifier: Apache-2.0
"""`RiskDiagonal`: the diagonal of a matrix J' B J of a risk at a point."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hesse.ad.quadratic import Quadratic
from hesse.ad.summands import Sum, Summand
from hesse.ad.variables import Variables
from hesse.curvature.diagonals.batch_squares import BatchSquares
from hesse.curvature.diagonals.by_example import add_squares
from hesse.curvature.diagonals.readers import Reader
from hesse.curvature.diagonals.vectors import Block, Weighted, in_blocks
from hesse.curvature.diagonals.visits import Batches, NoBlocksError, Reading, Visit
from hesse.operators.computed_diagonal import VECTORS_OF_A_PRODUCT, ComputedDiagonal
from hesse.tracing.vmap import CACHED_BYTES, directions_at_once
from hesse.vectors.random import drawn_seed

# What a node may write for all vectors in a model with convolutions.
_OF_IMAGES = 1 << 23

Take = Callable[[], Iterable[Weighted]]


@dataclass
class Diagonals:
    """The diagonals of one function at all points, which share programs.

    Args:
        f: the summands.
        reader: what z and B are.
    """

    f: Sum
    reader: Reader
    batches: Batches = field(init=False)

    def __post_init__(self) -> None:
        self.batches = Batches(self.reader)

    def at(self, variables: Variables) -> RiskDiagonal | None:
        """The diagonal at a point; None where the examples of a batch cannot be taken apart."""
        try:
            return RiskDiagonal(self.f, self.batches, variables)
        except NoBlocksError:
            return None


class RiskDiagonal(ComputedDiagonal):
    """The diagonal of sum_b c_b J_b' B_b J_b, with that of weight decay.

    Args:
        f: the summands.
        batches: what is known of them.
        variables: the point.
    """

    def __init__(self, f: Sum, batches: Batches, variables: Variables) -> None:
        self._f, self._batches = f, batches
        self._variables, self._space = variables, variables.space
        self._count = 0
        # A single batch that was read to count its vectors, until the first use.
        self._reading: Reading | None = None
        for summand in f.summands():
            if isinstance(summand.function, Quadratic):
                continue
            count = batches.known_count(summand)
            if count is None:
                reading = batches.read(summand, variables)
                count = reading.vectors.count
                self._reading = reading if f.num_summands == 1 else None
            self._count = max(self._count, count)

    @property
    def num_vectors(self) -> int:
        return self._count

    @property
    def products_a_sample(self) -> int:
        return 1

    @property
    def about(self) -> str:
        if self._batches.is_untraceable:
            return "example by example, as the model cannot be traced"
        names = list(self._batches.uncovered)
        if not names:
            return ""
        return f"example by example: {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}"

    def exact(self) -> Tensor:
        total = self._space.zeros()
        for visit in self._visits(total):
            vectors = visit.vectors
            squares = BatchSquares(visit, total.dtype, vectors.count)
            blocks = vectors.blocks(_at_once(visit, vectors.count))
            self._add(total, squares, blocks, vectors.all, visit.coefficient)
        return total

    def samples(self, count: int, generator: torch.Generator | None) -> list[Tensor]:
        signs = torch.Generator().manual_seed(drawn_seed(generator))
        constant = self._space.zeros()
        totals = [torch.zeros_like(constant) for _ in range(count)]
        for visit in self._visits(constant):
            coefficient = visit.coefficient / VECTORS_OF_A_PRODUCT
            squares = BatchSquares(visit, constant.dtype, VECTORS_OF_A_PRODUCT)
            for total in totals:
                draws = [visit.vectors.random(signs) for _ in range(VECTORS_OF_A_PRODUCT)]
                own = [weighted for draw in draws for weighted in draw]
                blocks = in_blocks(own, _at_once(visit, len(own)))
                self._add(total, squares, blocks, lambda own=own: own, coefficient)
        return [total.add_(constant) for total in totals]

    # -- Batches -----------------------------------------------------------------------------------

    def _visits(self, total: Tensor) -> Iterator[Visit]:
        """The batches; the diagonal of a summand without data is added to `total`."""
        for number, summand in enumerate(self._f.summands()):
            if isinstance(summand.function, Quadratic):
                self._add_quadratic(total, summand)
            else:
                reading, self._reading = self._reading, None
                yield self._batches.visit(number, summand, self._variables, reading)

    def _add_quadratic(self, total: Tensor, summand: Summand) -> None:
        c = summand.coefficient * summand.function.curvature
        constants = self._variables.constants
        for part, cold in zip(total.split(self._space.sizes), constants, strict=True):
            if cold is None:
                part.add_(c)

    # -- Sums --------------------------------------------------------------------------------------

    def _add(
        self,
        total: Tensor,
        squares: BatchSquares,
        blocks: Iterable[Block],
        take: Take,
        coefficient: float,
    ) -> None:
        """Add the squares for all vectors of a batch."""
        visit = squares.visit
        if visit.point is not None:
            for weights, us in blocks:
                squares.add(visit.point.tangents(us), weights)
            squares.take(total, coefficient)
        if visit.uncovered:
            add_squares(
                *(total, visit.uncovered, self._batches.reader, visit.f, visit.batch),
                *(visit.vectors, take, coefficient),
            )


def _at_once(visit: Visit, count: int) -> int:
    """How many vectors go together: as many as a cache holds, and one while a program is new.

    With convolutions more of them: the gradients of an example for all vectors are one product.
    """
    if visit.point is None or not visit.point.program.was_used_before:
        return 1
    uses = (use for block in visit.covered for use in block.uses)
    size = _OF_IMAGES if any(use.rule == "convolution" for use in uses) else CACHED_BYTES
    return min(count, directions_at_once(visit.point.program.partition.tangents["g"], size))
