# SPDX-License-Identifier: Apache-2.0
"""Rewrite a sum of zero-padded slices as one concatenation.

    slice_backward(a, 0, i) + slice_backward(b, j, n)  ->  cat(a[:j], a[j:] + b[:i-j], b[i-j:])

The derivative of x[i:j] is a tensor as large as x, zero but for the entries from i to j. A function
that reads x slice by slice (a recurrence, a finite difference) gives a sum of many of these. The
ends of the slices cut x into segments; within a segment the same slices overlap everywhere. Only
zeros are left out of the sums, and the order of the other terms may change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import pairwise

import torch

from hesse.tracing.graph import Graph, Node, Value, eliminate_dead_code, new_numbers
from hesse.tracing.passes.builder import Builder

_aten = torch.ops.aten

Interval = tuple[int, int]
"""The first entry of a slice, and the one after its last."""


def join_slices(graph: Graph) -> Graph:
    """The same computation, up to the order of sums, in no more nodes; adds to the metas."""
    return _Joiner(graph).run()


@dataclass
class _PaddedSlices:
    """The zero-padded slices of a sum, along one dimension, by the interval that they fill."""

    dim: int
    size: int
    slices: dict[Interval, list[Node]]

    @property
    def segments(self) -> list[tuple[Interval, list[Interval]]]:
        """From each end of a slice to the next one, with the slices that overlap there."""
        ends = sorted({0, self.size, *(end for interval in self.slices for end in interval)})
        return [
            ((a, b), [s for s in self.slices if s[0] <= a and b <= s[1]]) for a, b in pairwise(ends)
        ]

    @property
    def saves_nodes(self) -> bool:
        """Whether the concatenation takes no more nodes than the sum."""
        count = sum(map(len, self.slices.values()))
        adds = count - len(self.slices) + sum(abs(len(over) - 1) for _, over in self.segments)
        return self.size > 0 and count > 1 and adds + 1 <= 2 * count - 1


class _Joiner:
    """Visits the nodes from the last to the first, so that a sum comes before its partial sums."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._metas = graph, graph.metas
        self._maker = {number: node for node in graph.nodes for number in node.makes()}
        self._uses = Counter(number for node in graph.nodes for number in node.reads())
        self._uses.update(graph.outputs)
        self._numbers = new_numbers(graph.metas)
        self._partial_sums: set[int | None] = set()

    def run(self) -> Graph:
        """The graph after the rewrite."""
        nodes: list[Node] = []
        for node in reversed(self._graph.nodes):
            if _is_sum(node) and node.results[0] not in self._partial_sums:
                nodes += reversed(self._rewritten(node))
            else:
                nodes.append(node)
        return replace(self._graph, nodes=eliminate_dead_code(nodes[::-1], self._graph.outputs))

    def _rewritten(self, node: Node) -> list[Node]:
        """What takes the place of a sum: itself, if it has too few padded slices."""
        (result,) = node.makes()
        terms = list(self._terms(node, result))
        padded, joined = self._padded_slices(terms, result)
        if not padded.saves_nodes:
            return [node]
        builder = Builder(self._metas, self._numbers)
        total = _concatenate(padded, builder)
        reduce(partial(_add, builder), (n for n in terms if n not in joined), total)
        return builder.instead_of(node)

    def _terms(self, node: Node, result: int) -> Iterator[int]:
        """The terms of a sum and of its partial sums, which have no other reader."""
        stack = [argument.index for argument in reversed(node.args)]
        while stack:
            number = stack.pop()
            inner = self._maker.get(number)
            if inner is not None and _is_sum(inner) and self._is_only_term_of(number, result):
                self._partial_sums.add(number)
                stack += [argument.index for argument in reversed(inner.args)]
            else:
                yield number

    def _padded_slices(self, terms: list[int], result: int) -> tuple[_PaddedSlices, set[int]]:
        """The padded slices along the dimension of the first one, and the terms they are."""
        padded, joined = _PaddedSlices(0, 0, {}), set()
        for number in terms:
            node = self._maker.get(number)
            if node is None or not _is_padding(node) or not self._is_only_term_of(number, result):
                continue
            dim = node.args[2]
            if not joined:
                padded = _PaddedSlices(dim, self._metas[result].shape[dim], {})
            if dim == padded.dim:
                padded.slices.setdefault(_interval(node, padded.size), []).append(node)
                joined.add(number)
        return padded, joined

    def _is_only_term_of(self, number: int, result: int) -> bool:
        """Whether a value has one reader, and the layout of the sum."""
        return self._uses[number] == 1 and self._metas[number].same_layout(self._metas[result])


def _concatenate(padded: _PaddedSlices, builder: Builder) -> int:
    """The sum of padded slices, segment by segment."""
    slices = {
        interval: reduce(partial(_add, builder), [_unpadded(node, builder) for node in nodes])
        for interval, nodes in padded.slices.items()
    }
    parts = []
    for segment, over in padded.segments:
        cuts = [_cut(slices[s], padded.dim, s, segment, builder) for s in over]
        if cuts:
            parts.append(reduce(partial(_add, builder), cuts))
        else:
            parts.append(_zeros(padded, segment, builder))
    return builder.call(_aten.cat.default, [Value(number) for number in parts], padded.dim)


def _add(builder: Builder, a: int, b: int) -> int:
    return builder.call(_aten.add.Tensor, Value(a), Value(b))


def _unpadded(padding: Node, builder: Builder) -> int:
    """The slice without the zeros around it."""
    inner, _, dim = padding.args[:3]
    if padding.function is _aten.slice_backward.default:
        return inner.index
    return builder.call(_aten.unsqueeze.default, inner, dim)


def _cut(number: int, dim: int, interval: Interval, segment: Interval, builder: Builder) -> int:
    """What of the slice that fills `interval` lies in a segment."""
    if interval == segment:
        return number
    first, last = segment[0] - interval[0], segment[1] - interval[0]
    return builder.call(_aten.slice.Tensor, Value(number), dim, first, last)


def _zeros(padded: _PaddedSlices, segment: Interval, builder: Builder) -> int:
    """A segment that no slice fills."""
    padding = next(node for nodes in padded.slices.values() for node in nodes)
    shape = list(padding.args[1])
    shape[padded.dim] = segment[1] - segment[0]
    return builder.call(_aten.new_zeros.default, padding.args[0], shape)


def _is_sum(node: Node) -> bool:
    """Whether it is a + b for two tensors."""
    tensors = all(isinstance(argument, Value) for argument in node.args)
    return node.function is _aten.add.Tensor and tensors and not node.kwargs


def _is_padding(node: Node) -> bool:
    """Whether it puts zeros around a slice of step 1, or around a single entry."""
    if node.function is _aten.slice_backward.default:
        return node.args[5] == 1
    return node.function is _aten.select_backward.default


def _interval(node: Node, size: int) -> Interval:
    """Which of `size` entries a padding fills with its slice."""
    if node.function is _aten.select_backward.default:
        first = node.args[3] % size
        return first, first + 1
    first, last, _ = slice(node.args[3], node.args[4]).indices(size)
    return first, max(first, last)
