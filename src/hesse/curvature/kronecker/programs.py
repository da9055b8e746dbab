# SPDX-License-Identifier: Apache-2.0
"""The programs that give the operands of the last operations of a gradient.

J'u is traced once for every shape of data. A *primal program* computes what does not depend on u:
the operands a, and the residuals; a *tangent program* computes the operands g for every u. The
weight gradients themselves, a third of the work of a backward pass, are in neither.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hesse.ad.double_backward import derivative, twice_differentiable
from hesse.ad.jacobian import random_like
from hesse.ad.variables import BoundFunction, Leaves, tracked
from hesse.curvature.kronecker.examples import ExampleMap
from hesse.curvature.kronecker.layout import BlockLayout, block_layouts
from hesse.engine.closeness import agree
from hesse.engine.data_version import DataVersion
from hesse.surroundings import users_autocasts
from hesse.tracing.functionalize import trace
from hesse.tracing.graph import Graph, UntraceableError, replay_node
from hesse.tracing.last_operations import read_uses
from hesse.tracing.partition import Partition, Tangent, partition
from hesse.tracing.passes.pooling import mask_before_pooling
from hesse.tracing.passes.simplify import simplify
from hesse.tracing.passes.unused_results import without_unused_results
from hesse.tracing.program import GuardError, Program, run
from hesse.tracing.uses import Use
from hesse.tracing.vmap import batched


@dataclass
class FactorProgram:
    """The programs for one shape of data, and the blocks that they are read for."""

    partition: Partition
    blocks: list[BlockLayout]
    primal: list[int]
    """The values of the graph that the primal program returns: the outputs z, the operands a."""
    tangent: list[int]
    """Those that the tangent program returns: the operands g, and gradients without a rule."""
    num_outputs: int
    sorts_rows: bool
    """Whether rows go where the data say, so that examples must be found again."""
    source: tuple[Graph, list[int], list[int]]
    """The graph, its directions and its outputs."""
    maps: dict[Use, ExampleMap | None] = field(default_factory=dict)
    """The examples of the rows of each use."""

    closed_over: DataVersion | None = None
    """Of the constants, when the program was compared with the model."""
    uses: int = 0
    entered: int = 0
    """At how many points it was run."""
    together: dict[int, Program | None] = field(default_factory=dict)
    """The tangent program of so many directions; None where there is none, or it is not right."""

    def may_skip_check(self) -> bool:
        """Whether no comparison with the model is due, as is the case at uses 1, 2, 4, 8, ..."""
        self.uses += 1
        if self.uses & (self.uses - 1) == 0 or self.closed_over is None:
            return False
        return self.closed_over.matches(self.partition.constants)

    @property
    def was_used_before(self) -> bool:
        """Whether this is not its first use, so that more of them may be expected."""
        return self.entered > 1

    def was_checked(self) -> None:
        """Remember what the model closes over."""
        self.closed_over = DataVersion.of(self.partition.constants)

    def with_blocks(self, blocks: list[BlockLayout]) -> FactorProgram:
        """A program for other blocks."""
        return _program(*self.source, blocks)


@dataclass
class FactorPoint:
    """A batch at a point: operands a, and residuals, from which u gives operands g."""

    key: Hashable
    inputs: list[Tensor]
    program: FactorProgram
    outputs: list[Tensor]
    a: dict[int, Tensor]
    residuals: list[Tensor]

    def tangent(self, u: Sequence[Tensor]) -> dict[int, Tensor]:
        """The operands g of J'u, by value."""
        results = _run(self.program.partition.tangents["g"], [*self.residuals, *u])
        return dict(zip(self.program.tangent, results, strict=True))

    def tangents(self, us: Sequence[Tensor]) -> dict[int, Tensor]:
        """The operands g of several u, which are in the first dimension of every tensor."""
        k, known = len(us[0]), self.program.together
        if k == 1:
            return {n: g[None] for n, g in self.tangent([u[0] for u in us]).items()}
        if k not in known:
            known[k] = self._together(us)
        program = known[k]
        if program is None:
            parts = [self.tangent([part[j] for part in us]) for j in range(k)]
            return {n: torch.stack([part[n] for part in parts]) for n in self.program.tangent}
        results = _run(program, [*self.residuals, *us])
        return dict(zip(self.program.tangent, results, strict=True))

    def _together(self, us: Sequence[Tensor]) -> Program | None:
        """The program of so many directions, if it gives what they give alone."""
        single = self.program.partition.tangents["g"]
        mix = torch.linspace(1.0, 2.0, len(us[0]), dtype=torch.float64)
        try:
            with torch.no_grad():
                program = batched(single, self.residuals, *us)
            ours = [_mixed(mix, part) for part in _run(program, [*self.residuals, *us])]
        except (UntraceableError, GuardError, RuntimeError):
            return None
        theirs = self.tangent([_mixed(mix, part) for part in us])
        right = agree(ours, [theirs[n] for n in self.program.tangent], _eps(us))
        return program if right else None


def _mixed(weights: Tensor, block: Tensor) -> Tensor:
    return torch.tensordot(weights.to(block), block, 1)


Outputs = Callable[[BoundFunction, Leaves], list[Tensor]]
"""(f, leaves) -> z, the outputs at which vectors u begin."""


class FactorPrograms:
    """The programs of a model, one for every shape of data."""

    def __init__(self) -> None:
        self._known: dict[Hashable, FactorProgram] = {}
        self.traces = 0

    def enter(
        self,
        f: BoundFunction,
        data: Sequence[Tensor],
        key: Hashable,
        z: Sequence[Tensor],
        outputs: Outputs,
        *,
        single_example: bool,
    ) -> FactorPoint:
        """The operands at a point, from the program of its shape; it is traced if there is none.

        It is used again only if it repeats the outputs of the model.

        Args:
            f: the loss of a batch at the point.
            data: the tensors of the batch.
            key: what else tells the batch from others.
            z: the outputs as f computes them, which a program must repeat.
            outputs: computes them, with their graph.
            single_example: whether the batch is all there is, and has one example.

        Raises:
            UntraceableError: the model cannot be traced.
        """
        inputs, key = _inputs_and_key(f, data, key, single_example)
        program, z = self._known.get(key), [part.detach() for part in z]
        if program is not None:
            point = _entered(key, program, inputs)
            if point is not None and agree(point.outputs, z, _eps(z)):
                program.was_checked()
                return point
        program = _traced(f, inputs, z, outputs, single_example)
        self.traces += 1
        point = _entered(key, program, inputs)
        if point is None or not agree(point.outputs, z, _eps(z)):
            raise UntraceableError("the program does not repeat the outputs of the model")
        program.was_checked()
        self._known[key] = program
        return point

    def enter_unchecked(
        self, f: BoundFunction, data: Sequence[Tensor], key: Hashable, *, single_example: bool
    ) -> FactorPoint | None:
        """As `enter`, without the outputs of the model to compare with.

        None if there is no program yet, if it has not been compared at twice as many points as
        before, if a tensor that the model closes over has been written to, or if Python read
        another number.
        """
        inputs, key = _inputs_and_key(f, data, key, single_example)
        program = self._known.get(key)
        if program is None or not program.may_skip_check():
            return None
        return _entered(key, program, inputs)

    def change(self, point: FactorPoint, program: FactorProgram) -> None:
        """Use another program from now on, at this point too."""
        known, entered = point.program.maps, _entered(point.key, program, point.inputs)
        assert entered is not None
        program.maps.update(known)
        point.program, point.a, point.residuals = program, entered.a, entered.residuals
        self._known[point.key] = program


def _inputs_and_key(
    f: BoundFunction, data: Sequence[Tensor], key: Hashable, single_example: bool
) -> tuple[list[Tensor], Hashable]:
    inputs = [*f.variables.x, *f.variables.frozen, *data]
    return inputs, (key, f.variables.key, single_example, users_autocasts(), _form(inputs))


def _form(inputs: Sequence[Tensor]) -> Hashable:
    return tuple((t.shape, t.stride(), t.dtype, t.device) for t in inputs)


def _eps(tensors: Sequence[Tensor]) -> float:
    return max(torch.finfo(t.dtype).eps for t in tensors)


def _entered(key: Hashable, program: FactorProgram, inputs: list[Tensor]) -> FactorPoint | None:
    """None if a number or a shape that Python read while tracing is another one here."""
    try:
        results = _run(program.partition.primal_and_gradient, inputs)
    except GuardError:
        return None
    program.entered += 1
    count = len(program.primal)
    a = dict(zip(program.primal, results[:count], strict=True))
    return FactorPoint(*(key, inputs, program, results[: program.num_outputs], a, results[count:]))


def _run(program: Program, tensors: list[Tensor]) -> list[Tensor]:
    """The outputs; node by node where torch refuses to write into given memory.

    It does within `torch.autograd.graph.allow_mutation_on_saved_tensors` (torch 2.13).
    """
    try:
        return run(program, tensors)
    except KeyError:
        values = dict(zip(program.inputs, tensors, strict=True)) | program.constants
        with torch.inference_mode(False), torch.no_grad():
            for node in program.nodes:
                replay_node(node, values)
        return [values[number] for number in program.outputs]


def _traced(
    f: BoundFunction,
    inputs: list[Tensor],
    z: Sequence[Tensor],
    outputs_of: Outputs,
    single_example: bool,
) -> FactorProgram:
    variables, u = f.variables, random_like(z)

    def everything() -> list[Tensor]:
        with twice_differentiable():
            leaves = tracked(variables.x)
            outputs = outputs_of(f, leaves)
            return [*(part.detach() for part in outputs), *derivative(outputs, leaves, u)]

    graph = mask_before_pooling(simplify(trace(everything, [*inputs, *u])))
    directions = graph.inputs[len(inputs) :]
    outputs, gradients = graph.outputs[: len(u)], graph.outputs[len(u) :]
    frozen = [cold is not None for cold in variables.constants]
    uses = _expanded(read_uses(graph, gradients, directions), frozen)
    space = variables.space
    blocks = block_layouts(
        graph,
        space.names,
        space.sizes,
        uses,
        _expanded(gradients, frozen),
        single_example=single_example,
    )
    return _program(graph, directions, outputs, blocks)


def _expanded(varying: Sequence[Any], frozen: Sequence[bool]) -> list[Any]:
    """One for every parameter, None for a frozen one."""
    rest = iter(varying)
    return [None if cold else next(rest) for cold in frozen]


def _program(
    graph: Graph, directions: list[int], outputs: list[int], blocks: list[BlockLayout]
) -> FactorProgram:
    uses = [use for block in blocks for use in block.uses]
    a = list(dict.fromkeys(number for use in uses for number in (*use.a, *use.multipliers)))
    scalars = [block.gradient for block in blocks if block.kind == "scalar"]
    g = list(dict.fromkeys([use.g for use in uses] + [n for n in scalars if n is not None]))
    primal = [*outputs, *a]
    needed = without_unused_results(graph, [*primal, *g])
    parts = partition(needed, primal, {"g": Tangent(directions, g)})
    sorts = any(node.function in _SORTING for node in parts.tangents["g"].nodes)
    return FactorProgram(
        parts, blocks, primal, g, len(outputs), sorts, (graph, directions, outputs)
    )


_aten = torch.ops.aten
_SORTING = frozenset(
    [
        *(_aten.index.Tensor, _aten.index_put.default, _aten.index_select.default),
        *(_aten.gather.default, _aten.scatter.src, _aten.scatter_add.default),
        *(_aten.index_add.default, _aten.masked_scatter.default, _aten.take.default),
    ]
)
