# SPDX-License-Identifier: Apache-2.0
"""Partition a graph into what depends on a direction and what does not.

    primal program      (x, data)               -> value, gradient, residuals
    tangent programs    (residuals, direction)  -> product

The residuals are the values that the tangent programs read and the primal program computes. The
primal program runs once at a point, a tangent program once for every product.

A Hessian has one quantity that depends on a direction, H v; a Gauss-Newton matrix has two of the
same direction, G v and v' G v; a Jacobian has two of different directions, J v and J' u.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hesse.tracing.graph import (
    Graph,
    Node,
    UntraceableError,
    dependent_values,
    eliminate_dead_code,
)
from hesse.tracing.memory.liveness import Lifetimes
from hesse.tracing.memory.rematerialise import (
    IsCheap,
    choose_residuals,
    is_light,
    is_memory_bound,
    lower_peak,
)
from hesse.tracing.memory.schedule import delay, lazy_order
from hesse.tracing.operations import is_view
from hesse.tracing.passes.fuse_addmm import fuse_addmm
from hesse.tracing.passes.scalar_factors import fold_scalar_factors
from hesse.tracing.precision import with_bfloat16
from hesse.tracing.program import Program

# A partition of fewer bytes is not worth a recomputation.
_SMALL = 1 << 25

# The memory to aim at, in units of what the gradient takes: two, less some for vectors.
_GOAL = 1.8

# Rematerialise only if it lowers the memory by more than 5 %.
_TOLERANCE = 1.05


@dataclass(frozen=True)
class Tangent:
    """A quantity that depends on a direction, by numbers of values of a graph.

    Args:
        directions: the inputs of the graph that the direction is made of.
        outputs: the outputs of the graph that the quantity is made of.
    """

    directions: Sequence[int]
    outputs: Sequence[int]


@dataclass(frozen=True)
class Partition:
    """The programs of a graph, see `partition`."""

    primal: Program
    """inputs -> residuals"""
    primal_and_gradient: Program
    """inputs -> primal outputs (value, gradient), residuals"""
    tangents: dict[str, Program]
    """By name, [*residuals, *directions of its own] -> outputs; all take the same residuals."""
    residual_bytes: int
    """Of the residuals that are no inputs, constants, or views of one another."""

    def without_gradient(self, num_outputs: int) -> Program:
        """inputs -> the first primal outputs, residuals: what no other output needs is left out."""
        whole = self.primal_and_gradient
        outputs = [*whole.outputs[:num_outputs], *self.primal.outputs]
        graph = Graph(whole.nodes, whole.inputs, outputs, whole.constants, whole.metas)
        nodes = eliminate_dead_code(whole.nodes, outputs)
        measured = whole.measured_kernels
        return Program(graph, nodes, whole.inputs, outputs, measured_kernels=measured)

    @cached_property
    def constants(self) -> list[Tensor]:
        """The tensors that the programs close over, each once."""
        programs = [self.primal, self.primal_and_gradient, *self.tangents.values()]
        return list({id(t): t for program in programs for t in program.constants.values()}.values())

    @cached_property
    def peak_bytes(self) -> int:
        """What residuals and the largest tangent program take together.

        Of several quantities of one direction the first counts: the product, not v' G v.
        """
        first = {tuple(p.inputs): p for p in reversed(self.tangents.values())}
        return self.residual_bytes + max((p.peak_bytes() for p in first.values()), default=0)


def partition(
    graph: Graph,
    primal_outputs: Sequence[int],
    tangents: Mapping[str, Tangent],
    *,
    bfloat16: bool = False,
    low_memory: bool = False,
    measured_kernels: bool = True,
) -> Partition:
    """The programs of a graph, in at most twice the memory of the gradient if that costs little.

    Args:
        graph: simplified; its inputs that are no directions are those of the primal program.
        primal_outputs: the outputs that depend on no direction: the value, then the gradient.
        tangents: the other outputs, by name.
        bfloat16: whether to compute the large products of the tangent programs in bfloat16.
        low_memory: whether to save memory even where that costs time.
        measured_kernels: see `Program`.

    Raises:
        UntraceableError: a quantity depends on the direction of another one, or a number that
            Python read depends on a direction.
    """
    if bfloat16:
        graph = with_bfloat16(graph, dependent_values(graph.nodes, _all_directions(tangents)))
    parts = _Partitioner(graph, primal_outputs, tangents, measured_kernels)
    goal = max(_SMALL, int(_GOAL * parts.primal_program(primal_outputs).peak_bytes()))
    plain = parts.partition(None, goal)
    candidates = [plain]
    if low_memory:
        candidates += [parts.partition(is_cheap, 0) for is_cheap in (is_light, is_memory_bound)]
    elif plain.peak_bytes > goal:
        candidates.append(parts.partition(is_light, goal))
    acceptable = _TOLERANCE * min(candidate.peak_bytes for candidate in candidates)
    return next(candidate for candidate in candidates if candidate.peak_bytes <= acceptable)


class _Partitioner:
    """The tangent nodes of a graph, which depend on a direction, and its primal nodes."""

    def __init__(
        self,
        graph: Graph,
        primal_outputs: Sequence[int],
        tangents: Mapping[str, Tangent],
        measured_kernels: bool,
    ) -> None:
        self._graph, self._primal_outputs, self._tangents = graph, primal_outputs, tangents
        self._measured_kernels = measured_kernels
        self._directions = _all_directions(tangents)
        self._tangent_outputs = [n for tangent in tangents.values() for n in tangent.outputs]
        tangent = dependent_values(graph.nodes, self._directions)
        self._tangent_nodes = fold_scalar_factors(
            *(
                [node for node in graph.nodes if _any_in(node.reads(), tangent)],
                self._tangent_outputs,
                graph.metas,
            ),
        )
        self._primal_nodes = [n for n in graph.nodes if not _any_in(n.reads(), tangent)]
        self._inputs = [number for number in graph.inputs if number not in self._directions]
        self._foreign = {
            name: dependent_values(graph.nodes, self._directions.difference(tangent.directions))
            for name, tangent in tangents.items()
        }
        self._check_directions()

    def partition(self, is_cheap: IsCheap | None, goal: int) -> Partition:
        """The partition whose tangent programs recompute what is cheap; None: nothing."""
        nodes = self._tangent_nodes
        if is_cheap is not None:
            needed = self._residuals(nodes)
            kept = choose_residuals(self._graph, self._primal_nodes, needed, is_cheap)
            nodes = lazy_order(self._primal_nodes, nodes, set(kept))
        residuals = self._residuals(nodes)
        size = _own_bytes(self._graph, self._primal_nodes, residuals)
        return Partition(
            primal=self.primal_program(residuals),
            primal_and_gradient=self.primal_program([*self._primal_outputs, *residuals]),
            tangents={
                name: self._tangent_program(name, nodes, residuals, is_cheap, goal - size)
                for name in self._tangents
            },
            residual_bytes=size,
        )

    def primal_program(self, outputs: Sequence[int]) -> Program:
        """The program of outputs that depend on no direction."""
        nodes = eliminate_dead_code(self._primal_nodes, outputs)
        return self._program(nodes, self._inputs, outputs)

    def _residuals(self, nodes: list[Node]) -> list[int]:
        """What tangent nodes, or the caller, read of the primal program."""
        made = {number for node in nodes for number in node.results} | self._directions
        reads = {number for node in nodes for number in node.reads()} | set(self._tangent_outputs)
        return sorted(reads - made - set(self._graph.constants))

    def _tangent_program(
        self,
        name: str,
        nodes: list[Node],
        residuals: list[int],
        is_cheap: IsCheap | None,
        goal: int,
    ) -> Program:
        """The program of one quantity, made of those nodes that depend on no other direction."""
        metas, outputs = self._graph.metas, list(self._tangents[name].outputs)
        inputs = [*residuals, *self._tangents[name].directions]
        held = {*inputs, *self._graph.constants}
        nodes = [node for node in nodes if not _any_in(node.reads(), self._foreign[name])]
        nodes, join = _without_join(eliminate_dead_code(nodes, outputs), outputs)
        parts = [n for node in join for n in node.reads()] or outputs  # made as early as possible
        nodes = delay(nodes, metas, held, parts, is_cheap or (lambda node: is_view(node.function)))
        nodes = fuse_addmm(nodes, parts, metas)
        if is_cheap is not None:
            nodes = lower_peak(
                *(nodes, metas, held, parts, goal, is_cheap),
                measured_kernels=self._measured_kernels,
            )
        return self._program([*nodes, *join], inputs, outputs)

    def _program(self, nodes: list[Node], inputs: Sequence[int], outputs: Sequence[int]) -> Program:
        return Program(
            *(self._graph, nodes, inputs, outputs), measured_kernels=self._measured_kernels
        )

    def _check_directions(self) -> None:
        """Raise unless every quantity depends on its own directions, and Python on none of them."""
        for name, tangent in self._tangents.items():
            if _any_in(tangent.outputs, self._foreign[name]):
                raise UntraceableError(f"the {name} depends on the direction of another quantity")
        for node in self._tangent_nodes:
            returns_number = all(number is None for number in node.results)
            is_foreign = all(_any_in(node.reads(), found) for found in self._foreign.values())
            if returns_number or is_foreign:
                raise UntraceableError("Python reads a number that depends on the direction")


def _without_join(nodes: list[Node], outputs: list[int]) -> tuple[list[Node], list[Node]]:
    """The nodes without the concatenation that makes the only output, and that concatenation."""
    joined = (
        nodes
        and nodes[-1].function is torch.ops.aten.cat.default
        and [*nodes[-1].results] == outputs
    )
    return (nodes[:-1], nodes[-1:]) if joined else (nodes, [])


def _all_directions(tangents: Mapping[str, Tangent]) -> set[int]:
    return {number for tangent in tangents.values() for number in tangent.directions}


def _any_in(numbers: Iterable[int], found: Collection[int]) -> bool:
    return any(number in found for number in numbers)


def _own_bytes(graph: Graph, nodes: list[Node], residuals: list[int]) -> int:
    """The bytes of the roots of `residuals` that are neither inputs nor constants."""
    lifetimes = Lifetimes(nodes, residuals)
    own = {lifetimes.root(number) for number in residuals} - set(graph.inputs)
    return sum(graph.metas[number].nbytes for number in own - set(graph.constants))
