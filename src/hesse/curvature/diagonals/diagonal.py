# SPDX-License-Identifier: Apache-2.0
"""`RiskDiagonal`: the diagonal of a matrix J' B J of a risk at a point."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hesse.ad.quadratic import Quadratic
from hesse.ad.summands import Sum, Summand
from hesse.ad.variables import BoundFunction, Variables, tracked
from hesse.curvature.diagonals.by_example import add_squares
from hesse.curvature.diagonals.readers import Reader
from hesse.curvature.diagonals.squares import SquaredOperands, Squares, squares_of
from hesse.curvature.diagonals.vectors import Block, Vectors, Weighted, in_blocks
from hesse.curvature.kronecker.examples import ExampleMap, read_map, scales
from hesse.curvature.kronecker.layout import BlockLayout
from hesse.curvature.kronecker.programs import FactorPoint, FactorPrograms
from hesse.curvature.kronecker.rows import gradient_rows, rows_of_g
from hesse.data.slicing import num_examples
from hesse.operators.computed_diagonal import VECTORS_OF_A_PRODUCT, ComputedDiagonal
from hesse.operators.placed_blocks import Range
from hesse.tracing.graph import UntraceableError
from hesse.tracing.uses import Use
from hesse.tracing.vmap import directions_at_once
from hesse.vectors.space import Space, Tree

_MIXES = "no rule for rows that depend on several examples"

Take = Callable[[], Iterable[Weighted]]


class _NoBlocksError(Exception):
    """A batch has no block of B for each example, so that nothing is computed by examples."""


@dataclass
class Diagonals:
    """What the points of one function share: programs, and the parameters that none of them covers.

    Args:
        f: the summands.
        reader: what z and B are.
    """

    f: Sum
    reader: Reader
    programs: FactorPrograms = field(init=False)
    uncovered: dict[str, None] = field(default_factory=dict)
    """Names of parameters, in order."""
    is_untraceable: bool = False

    def __post_init__(self) -> None:
        self.programs = FactorPrograms(lambda f, x: self.reader.outputs(self.reader.loss(f, x)))

    def at(self, x: Tree) -> RiskDiagonal | None:
        """The diagonal at a point; None where the examples of a batch cannot be taken apart."""
        try:
            return RiskDiagonal(self, x)
        except _NoBlocksError:
            return None


class _Read(NamedTuple):
    """What is read off the loss of a batch."""

    f: BoundFunction
    batch: Any
    vectors: Vectors


@dataclass
class _Visit:
    """A batch at the point."""

    coefficient: float
    f: BoundFunction
    batch: Any
    vectors: Vectors
    point: FactorPoint | None
    maps: dict[Use, ExampleMap] = field(default_factory=dict)
    parts: list[Squares] = field(default_factory=list)
    """The sums for its parameters, which are made at the first vector."""

    @property
    def blocks(self) -> list[BlockLayout]:
        return [] if self.point is None else self.point.program.blocks

    @property
    def uncovered(self) -> list[int]:
        """The numbers of the parameters without a rule."""
        if self.point is None:
            constants = self.f.variables.constants
            return [k for k, cold in enumerate(constants) if cold is None]
        numbers = [block.parameter[0] for block in self.blocks if block.kind == "scalar"]
        return list(dict.fromkeys(numbers))


class RiskDiagonal(ComputedDiagonal):
    """The diagonal of sum_b c_b J_b' B_b J_b, with that of weight decay.

    Args:
        shared: what it shares with other points.
        x: the point.
    """

    def __init__(self, shared: Diagonals, x: Tree) -> None:
        self._f, self._shared = shared.f, shared
        self._space = Space.of(x)
        self._variables = Variables.of(x, self._space)
        self._count = 0
        # A single batch that was read to count its vectors, until the first use.
        self._read_before: _Read | None = None
        for summand in self._f.summands():
            if not isinstance(summand.function, Quadratic):
                read = self._read(summand)
                self._count = max(self._count, read.vectors.count)
                self._read_before = read if self._f.num_summands == 1 else None

    @property
    def num_vectors(self) -> int:
        return self._count

    @property
    def products_a_sample(self) -> int:
        return 1

    @property
    def about(self) -> str:
        if self._shared.is_untraceable:
            return "example by example, as the model cannot be traced"
        names = list(self._shared.uncovered)
        if not names:
            return ""
        return f"example by example: {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}"

    def exact(self) -> Tensor:
        total = self._space.zeros()
        for visit in self._visits(total):
            vectors = visit.vectors
            blocks = vectors.blocks(_at_once(visit, vectors.count))
            self._add(total, visit, blocks, vectors.all, vectors.count, visit.coefficient)
        return total

    def samples(self, count: int, generator: torch.Generator | None) -> list[Tensor]:
        device = "cpu" if generator is None else generator.device
        seed = int(torch.randint(2**62, (), generator=generator, device=device))
        signs = torch.Generator().manual_seed(seed)
        constant = self._space.zeros()
        totals = [torch.zeros_like(constant) for _ in range(count)]
        for visit in self._visits(constant):
            coefficient = visit.coefficient / VECTORS_OF_A_PRODUCT
            for total in totals:
                draws = [visit.vectors.random(signs) for _ in range(VECTORS_OF_A_PRODUCT)]
                own = [weighted for draw in draws for weighted in draw]
                blocks = in_blocks(own, _at_once(visit, len(own)))
                self._add(total, visit, blocks, lambda own=own: own, len(own), coefficient)
        return [total.add_(constant) for total in totals]

    # -- Batches -----------------------------------------------------------------------------------

    def _visits(self, total: Tensor) -> Iterator[_Visit]:
        """The batches; the diagonal of a summand without data is added to `total`."""
        for summand in self._f.summands():
            if isinstance(summand.function, Quadratic):
                self._add_quadratic(total, summand)
            else:
                yield self._enter(summand)

    def _add_quadratic(self, total: Tensor, summand: Summand) -> None:
        c = summand.coefficient * summand.function.curvature
        constants = self._variables.constants
        for part, cold in zip(total.split(self._space.sizes), constants, strict=True):
            if cold is None:
                part.add_(c)

    def _read(self, summand: Summand) -> _Read:
        reader = self._shared.reader
        f = BoundFunction(summand.function, self._variables)
        batch = getattr(summand.function, "function", summand.function).batch
        examples = num_examples(batch)
        loss = reader.loss(f, tracked(self._variables.x))
        vectors = None
        if examples is not None:
            vectors = reader.vectors(loss, summand.function, examples)
        if vectors is None:
            raise _NoBlocksError
        return _Read(f, batch, vectors)

    def _enter(self, summand: Summand) -> _Visit:
        read, self._read_before = self._read_before or self._read(summand), None
        f, vectors = read.f, read.vectors
        visit = _Visit(summand.coefficient, f, read.batch, vectors, None)
        if not self._shared.is_untraceable:
            try:
                visit.point = self._shared.programs.enter(
                    *(f, summand.data, summand.key, vectors.z),
                    single_example=vectors.examples == 1,
                )
            except UntraceableError:
                self._shared.is_untraceable = True
        if visit.point is not None:
            self._split_biases(visit.point)
            visit.maps = self._maps(visit.point, vectors)
        names = self._space.names
        self._shared.uncovered.update(dict.fromkeys(names[k] for k in visit.uncovered))
        return visit

    def _split_biases(self, point: FactorPoint) -> None:
        """A block for each parameter alone."""
        blocks = point.program.blocks
        if any(block.parts for block in blocks):
            parts = [part for block in blocks for part in block.parts or (block,)]
            self._shared.programs.change(point, point.program.with_blocks(parts))

    # -- Examples ----------------------------------------------------------------------------------

    def _maps(self, point: FactorPoint, vectors: Vectors) -> dict[Use, ExampleMap]:
        """The examples of the rows of all uses; blocks that mix them lose their rule."""
        program = point.program
        uses = [use for block in program.blocks for use in block.uses]
        if (
            program.sorts_rows
            or _has_gaps(program.maps)
            or any(u not in program.maps for u in uses)
        ):
            program.maps.update(_probed(point, vectors, uses))
        if any(program.maps[use] is None for use in uses):
            blocks = []
            for block in program.blocks:
                mixes = any(program.maps[use] is None for use in block.uses)
                blocks += block.without_rule(_MIXES) if mixes else [block]
            self._shared.programs.change(point, program.with_blocks(blocks))
        known = point.program.maps
        return {use: map_ for use in uses if (map_ := known[use]) is not None}

    # -- Sums --------------------------------------------------------------------------------------

    def _add(
        self,
        total: Tensor,
        visit: _Visit,
        blocks: Iterable[Block],
        take: Take,
        count: int,
        coefficient: float,
    ) -> None:
        """Add the squares for all vectors of a batch."""
        if visit.point is not None:
            self._add_by_rules(total, visit.point, visit, blocks, count, coefficient)
        if visit.uncovered:
            add_squares(
                *(total, visit.uncovered, self._shared.reader, visit.f, visit.batch),
                *(visit.vectors, take, coefficient),
            )

    def _add_by_rules(
        self,
        total: Tensor,
        point: FactorPoint,
        visit: _Visit,
        vectors: Iterable[Block],
        count: int,
        coefficient: float,
    ) -> None:
        squares = SquaredOperands(total.dtype)
        for weights, us in vectors:
            g = _tangents(point, us)
            if not visit.parts:
                first = {number: block[0] for number, block in g.items()}
                visit.parts += [
                    squares_of(block, point.a, first, visit.maps, total.dtype, count)
                    for block in _covered(visit)
                ]
            squares.add(g, [n for part in visit.parts if (n := part.one_row) is not None], weights)
            for part in visit.parts:
                if part.one_row is None:
                    for j, weight in enumerate(weights):
                        part.add({number: block[j] for number, block in g.items()}, weight)
        for part in visit.parts:
            place, sums = part.block.place, part.take(squares.values).reshape(-1)
            entries = place.take(total).add_(sums, alpha=coefficient)
            if not isinstance(place, Range):  # they were a copy
                place.put(total, entries)


def _covered(visit: _Visit) -> list[BlockLayout]:
    """The blocks that have a rule, of parameters all of whose blocks do."""
    uncovered = set(visit.uncovered)
    return [
        block
        for block in visit.blocks
        if block.kind in ("kronecker", "rows") and block.parameter[0] not in uncovered
    ]


def _at_once(visit: _Visit, count: int) -> int:
    """How many vectors go together: as many as a cache holds, and one while a program is new."""
    if visit.point is None or not visit.point.program.was_used_before:
        return 1
    return min(count, directions_at_once(visit.point.program.partition.tangents["g"]))


def _tangents(point: FactorPoint, us: list[Tensor]) -> dict[int, Tensor]:
    """The operands g of several vectors."""
    if len(us[0]) > 1:
        return point.tangents(us)
    return {number: g[None] for number, g in point.tangent([u[0] for u in us]).items()}


def _has_gaps(maps: dict[Use, ExampleMap | None]) -> bool:
    """Whether a map has rows of no example: they were zero when it was read."""
    return any(
        map_ is not None and map_.index is not None and bool((map_.index < 0).any())
        for map_ in maps.values()
    )


def _probed(point: FactorPoint, vectors: Vectors, uses: list[Use]) -> dict[Use, ExampleMap | None]:
    """The examples of rows, by a probe with another scale for every example."""
    generator = torch.Generator().manual_seed(0)
    u = [torch.randn(z.shape, generator=generator).to(z.detach()) for z in vectors.z]
    plain = point.tangent(u)
    probed = [point.tangent(vectors.scaled(u, s)) for s in scales(vectors.examples)]
    maps = {}
    for use in uses:

        def rows(g: dict[int, Tensor], use: Use = use) -> Tensor:
            return (rows_of_g if use.is_factored else gradient_rows)(use, g, point.a)

        own = rows(plain)
        maps[use] = read_map(
            own, [rows(g) for g in probed], vectors.examples, _tolerance(own.dtype)
        )
    return maps


def _tolerance(dtype: torch.dtype) -> float:
    """The relative rounding error that a row may have after a deep backward pass."""
    return min(1 / 32, torch.finfo(dtype).eps ** 0.4)
