# SPDX-License-Identifier: Apache-2.0
"""A program that computes the entries of a sparse Hessian themselves, without directions.

The program of a product with v is written as terms in v (`terms`); each contribution of a term to
the result is one to an entry of the matrix. What all directions of a coloured block have in common,
the factors, is computed once instead of once for every colour, and zeros are not multiplied. Only
products, quotients, sums, and operations that move entries can be written so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from hesse.tracing.functionalize import trace
from hesse.tracing.graph import (
    Graph,
    Node,
    UntraceableError,
    Value,
    eliminate_dead_code,
    last_reads,
    replay_node,
)
from hesse.tracing.passes.simplify import simplify
from hesse.tracing.program import Program
from hesse.tracing.sparsity.collect import Places, collected
from hesse.tracing.sparsity.detect import LinearPart
from hesse.tracing.sparsity.rules import indexing, reductions, scatter
from hesse.tracing.sparsity.tape import Tape
from hesse.tracing.sparsity.terms import Arrays, Term, added, scaled

_aten = torch.ops.aten

_MULTIPLY = {_aten.mul.Tensor, _aten.mul.Scalar}
_DIVIDE = {_aten.div.Tensor, _aten.div.Scalar}
_ADD = {_aten.add.Tensor: 1.0, _aten.sub.Tensor: -1.0}

# Besides those of `indexing`, operations that give sums of entries of their argument.
_SUMS = frozenset(
    [
        *(_aten.sum.default, _aten.sum.dim_IntList, _aten.cumsum.default, _aten.index_add.default),
        *(_aten.index_put.default, _aten._unsafe_index_put.default, _aten.scatter_add.default),
        *(
            scatter.ADJOINTS.keys() - {_aten.embedding_dense_backward.default}
        ),  # that leaves rows out
    ]
)


def entries_program(
    program: Program,
    residuals: list[Tensor],
    part: LinearPart,
    places: Places,
    varying: Any,
) -> Program:
    """residuals -> the entries of the pattern, row by row; a sum that is finite only if they are.

    Args:
        program: [*residuals, direction] -> the product.
        residuals: at the point.
        part: its linear part.
        places: of the entries.
        varying: the row of the matrix for every entry of the product.

    Raises:
        UntraceableError: an operation that has no rule; too many terms.
    """

    def entries() -> list[Tensor]:
        values = dict(zip(program.inputs, residuals, strict=False)) | program.constants
        for node in part.fixed:
            replay_node(node, values)
        terms, like = _Writer(program, part, values).terms(), program.metas[part.output]
        return collected(terms, places, varying, like.dtype, like.device)

    if part.output in program.inputs or not places.count:
        raise UntraceableError("nothing is computed")
    with torch.no_grad():
        graph = _folded(simplify(trace(entries, residuals)), program.constants.values())
    nodes = eliminate_dead_code(graph.nodes, graph.outputs)
    return Program(graph, nodes, graph.inputs, graph.outputs)


def _folded(graph: Graph, theirs: Iterable[Tensor]) -> Graph:
    """The graph with constants for what depends on index arrays alone: these on their device, say.

    Args:
        graph: of the entries.
        theirs: the tensors that f closes over, which may be written to.
    """
    foreign = {id(tensor) for tensor in theirs}
    constants, nodes = dict(graph.constants), []
    values = {n: tensor for n, tensor in constants.items() if id(tensor) not in foreign}
    for node in graph.nodes:
        if values.keys() >= set(node.reads()):
            replay_node(node, values)
        else:
            nodes.append(node)
    return Graph(nodes, graph.inputs, graph.outputs, constants | values, graph.metas)


class _Writer:
    """Writes the values of a linear part as terms, from those that do not depend on v."""

    def __init__(self, program: Program, part: LinearPart, values: dict[int, Tensor]) -> None:
        self._metas, self._part, self._values = program.metas, part, values
        self._arrays = Arrays()
        self._tape = Tape(program.metas, part.known, {}, {})
        every = self._arrays.count(self._tape.numel(part.direction))
        self._terms = {part.direction: [Term(1.0, None, None, every, every)]}

    def terms(self) -> list[Term]:
        """Those of the result."""
        dying = last_reads(self._part.nodes, {self._part.output})
        for position, node in enumerate(self._part.nodes):
            for number, terms in zip(node.results, self._results(node), strict=True):
                if number is not None and terms:
                    self._terms[number] = added(terms)
            for number in dying.get(position, ()):
                self._terms.pop(number, None)
        return self._terms.get(self._part.output, [])

    def _results(self, node: Node) -> list[list[Term]]:
        moving = [number for number in dict.fromkeys(node.reads()) if number in self._terms]
        used = [*moving, *node.makes()]
        if len({self._metas[number].dtype for number in used}) > 1:
            raise UntraceableError(f"{node.function} between dtypes")
        if not moving or node.function in indexing.FILLS:  # nothing, or of the shape alone
            return [[] for _ in node.results]
        if node.function is _aten.neg.default:
            return [scaled(self._terms[moving[0]], -1.0)]
        if node.function in _MULTIPLY:
            first, second = node.args[:2]
            moves, factor = (first, second) if self._moves(first) else (second, first)
            return [self._times(node, moves, self._fixed(factor))]
        if node.function in _DIVIDE and len(node.args) == 2 and not node.kwargs:
            return [self._times(node, node.args[0], 1.0 / self._fixed(node.args[1]))]
        if node.function is _aten.masked_fill.Scalar and node.args[-1] == 0:
            mask = self._fixed(node.args[1])
            return [self._times(node, node.args[0], mask.logical_not())]
        if node.function is _aten.where.self:
            return [self._branches(node)]
        if node.function in _ADD:
            return [self._sum(node)]
        if indexing.moves_entries(node) or self._is_sum(node):
            return self._moved(node, moving)
        raise UntraceableError(f"{node.function} has no rule for entries")

    def _moves(self, argument: Any) -> bool:
        return isinstance(argument, Value) and argument.index in self._terms

    def _fixed(self, argument: Any) -> Any:
        """The tensor or number of an argument that does not depend on v."""
        if not isinstance(argument, Value):
            return argument
        if argument.index not in self._values:
            raise UntraceableError("a product of two tensors that depend on the direction")
        return self._values[argument.index]

    def _times(self, node: Node, moves: Value, factor: Any) -> list[Term]:
        """The terms of a value times a tensor or a number."""
        terms = self._broadcast(node, moves)
        if not isinstance(factor, Tensor):
            return scaled(terms, float(factor))
        dtype = self._metas[moves.index].dtype
        return self._arrays.times(terms, factor, self._shape(node), dtype)

    def _branches(self, node: Node) -> list[Term]:
        condition, *branches = node.args
        condition = self._fixed(condition)
        masks = condition, condition.logical_not()
        pairs = [pair for pair in zip(branches, masks, strict=True) if self._moves(pair[0])]
        return [term for branch, mask in pairs for term in self._times(node, branch, mask)]

    def _sum(self, node: Node) -> list[Term]:
        alpha = _ADD[node.function] * node.kwargs.get("alpha", 1.0)
        parts = zip(node.args[:2], (1.0, alpha), strict=True)
        return [
            term
            for argument, c in parts
            if self._moves(argument)
            for term in scaled(self._broadcast(node, argument), c)
        ]

    def _shape(self, node: Node) -> tuple[int, ...]:
        (result,) = node.results
        assert result is not None
        return self._tape.shape(result)

    def _broadcast(self, node: Node, argument: Value) -> list[Term]:
        number, shape = argument.index, self._shape(node)
        if self._tape.shape(number) == shape:
            return self._terms[number]
        pattern = self._tape.alone(number).broadcast(number, shape)
        return self._arrays.moved(self._terms[number], pattern)

    def _is_sum(self, node: Node) -> bool:
        return node.function in _SUMS and "alpha" not in node.kwargs

    def _moved(self, node: Node, moving: Sequence[int]) -> list[list[Term]]:
        results: list[list[Term]] = [[] for _ in node.results]
        for number in moving:
            tape = self._tape.alone(number)
            rules = (indexing.patterns, reductions.patterns, scatter.patterns)
            found = next(p for rule in rules if (p := rule(node, tape)) is not None)
            for terms, pattern in zip(results, found, strict=True):
                if pattern is not None:
                    terms += self._arrays.moved(self._terms[number], pattern)
        return results
