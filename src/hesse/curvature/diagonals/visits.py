# SPDX-License-Identifier: Apache-2.0
"""`Visit`: a batch at a point, with all that sums over it read: vectors, operands, examples.

`Batches` are those of one function, at points that share programs. The model is run at the first
points; later ones take its outputs from the program (`kronecker.seen_batches`).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hesse.ad.likelihoods.seen import SeenLikelihoods
from hesse.ad.summands import Summand
from hesse.ad.variables import BoundFunction, Leaves, Variables, tracked
from hesse.curvature.diagonals.readers import Reader
from hesse.curvature.diagonals.vectors import Vectors
from hesse.curvature.kronecker.examples import ExampleMap, read_map, scales
from hesse.curvature.kronecker.layout import BlockLayout
from hesse.curvature.kronecker.programs import FactorPoint, FactorPrograms
from hesse.curvature.kronecker.rows import gradient_rows, rows_of_g
from hesse.curvature.kronecker.seen_batches import SeenBatches
from hesse.data.slicing import num_examples
from hesse.tracing.graph import UntraceableError
from hesse.tracing.uses import Use

_MIXES = "no rule for rows that depend on several examples"


class NoBlocksError(Exception):
    """A batch has no block of B for each example, so that nothing is computed by examples."""


class Reading(NamedTuple):
    """What a forward pass of the model on a batch shows."""

    f: BoundFunction
    loss: Any
    vectors: Vectors


@dataclass
class Visit:
    """A batch at a point.

    Args:
        coefficient, f: of the summand.
        vectors: those at the outputs.
        point: the operands; None where the model cannot be traced.
        maps: the examples of the rows of every use.
    """

    coefficient: float
    f: BoundFunction
    vectors: Vectors
    point: FactorPoint | None = None
    maps: dict[Use, ExampleMap] = field(default_factory=dict)

    @property
    def batch(self) -> Any:
        """The batch itself."""
        return _batch(self.f)

    @property
    def blocks(self) -> list[BlockLayout]:
        """All blocks of the program."""
        return [] if self.point is None else self.point.program.blocks

    @property
    def uncovered(self) -> list[int]:
        """The numbers of the parameters without a rule."""
        if self.point is None:
            constants = self.f.variables.constants
            return [k for k, cold in enumerate(constants) if cold is None]
        numbers = [block.parameter[0] for block in self.blocks if block.kind == "scalar"]
        return list(dict.fromkeys(numbers))

    @property
    def covered(self) -> list[BlockLayout]:
        """The blocks that have a rule, of parameters all of whose blocks do."""
        uncovered = set(self.uncovered)
        return [
            block
            for block in self.blocks
            if block.kind in ("kronecker", "rows") and block.parameter[0] not in uncovered
        ]


@dataclass
class Batches:
    """The batches of one function.

    Args:
        reader: what z and B are.
    """

    reader: Reader
    programs: FactorPrograms = field(init=False)
    uncovered: dict[str, None] = field(default_factory=dict)
    """Names of parameters that no rule covers, in order."""
    is_untraceable: bool = False

    def __post_init__(self) -> None:
        self.programs = FactorPrograms()
        self._seen = SeenBatches(self.programs)
        self._counts: dict[Hashable, int] = {}

    def known_count(self, summand: Summand) -> int | None:
        """How many vectors a batch has, if one of this shape was seen before."""
        return self._counts.get(_shape(summand))

    def read(self, summand: Summand, variables: Variables) -> Reading:
        """A batch by a forward pass of the model.

        Raises:
            NoBlocksError: its examples cannot be taken apart.
        """
        f = BoundFunction(summand.function, variables)
        loss = self.reader.loss(f, tracked(variables.x))
        return Reading(f, loss, self._vectors(f, loss))

    def visit(
        self, number: int, summand: Summand, variables: Variables, reading: Reading | None = None
    ) -> Visit:
        """A batch at a point; without a forward pass if it has been read, or seen before."""
        visit = None if reading is not None else self._again(number, summand, variables)
        if visit is None:
            visit = self._first(number, summand, reading or self.read(summand, variables))
        if visit.point is not None:
            visit.maps = self._maps(visit.point, visit.vectors)
            while self._split_half_covered(visit.point):
                visit.maps = self._maps(visit.point, visit.vectors)
        names = variables.space.names
        self.uncovered.update(dict.fromkeys(names[k] for k in visit.uncovered))
        return visit

    def _again(self, number: int, summand: Summand, variables: Variables) -> Visit | None:
        """A batch that was seen before, by the program alone."""
        f = BoundFunction(summand.function, variables)
        single = num_examples(_batch(f)) == 1
        again = self._seen.enter(number, f, summand, single_example=single)
        if again is None:
            return None
        point, likelihoods = again
        return Visit(summand.coefficient, f, self._vectors(f, likelihoods), point)

    def _first(self, number: int, summand: Summand, reading: Reading) -> Visit:
        """A batch that has been read, at which the program is compared with the model."""
        f, loss, vectors = reading
        visit = Visit(summand.coefficient, f, vectors)
        if self.is_untraceable:
            return visit
        try:
            visit.point = self.programs.enter(
                *(f, summand.data, summand.key, vectors.z, self._outputs),
                single_example=vectors.examples == 1,
            )
        except UntraceableError:
            self.is_untraceable = True
            return visit
        if isinstance(loss, SeenLikelihoods):
            self._seen.remember(number, summand.data, loss)
            self._counts[_shape(summand)] = vectors.count
        return visit

    def _outputs(self, f: BoundFunction, x: Leaves) -> list[Tensor]:
        return self.reader.outputs(self.reader.loss(f, x))

    def _vectors(self, f: BoundFunction, loss: Any) -> Vectors:
        examples = num_examples(_batch(f))
        vectors = None
        if examples is not None:
            vectors = self.reader.vectors(loss, f.function, examples)
        if vectors is None:
            raise NoBlocksError
        return vectors

    # -- Programs ----------------------------------------------------------------------------------

    def _split_half_covered(self, point: FactorPoint) -> bool:
        """Take a weight and a bias of one block apart where another part of one has no rule."""
        blocks = point.program.blocks
        bare = {block.parameter[0] for block in blocks if block.kind == "scalar"}
        split = [any(part.parameter[0] in bare for part in block.parts) for block in blocks]
        if any(split):
            pairs = zip(blocks, split, strict=True)
            parts = [part for block, cut in pairs for part in (block.parts if cut else (block,))]
            self.programs.change(point, point.program.with_blocks(parts))
        return any(split)

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
            self.programs.change(point, program.with_blocks(blocks))
        known = point.program.maps
        return {use: map_ for use in uses if (map_ := known[use]) is not None}


def _shape(summand: Summand) -> Hashable:
    return summand.key, tuple(tensor.shape for tensor in summand.data)


def _batch(f: BoundFunction) -> Any:
    return getattr(f.function, "function", f.function).batch


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
