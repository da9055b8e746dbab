# SPDX-License-Identifier: Apache-2.0
"""Remove nodes that compute nothing new: copies, common subexpressions, x + 0, 1 x, dead code.

Every rewrite is exact: the removed node had the same entries, in the same layout, as the value that
takes the place of its result. In a functional graph nothing writes to either.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from hesse.tracing.graph import Graph, Node, TensorMeta, Value, eliminate_dead_code, rename
from hesse.tracing.operations import LAZY_VIEWS, is_view
from hesse.tracing.passes.constants import FilledTensors

_aten = torch.ops.aten

# They return their argument, or a copy of it.
_IDENTITIES = frozenset(
    [
        *(_aten.detach.default, _aten.alias.default, _aten.lift_fresh.default),
        *(_aten.clone.default, _aten._to_copy.default, _aten.contiguous.default),
    ]
)

# The second operand that leaves the first as it is.
_NEUTRAL = {
    _aten.add.Tensor: 0.0,
    _aten.sub.Tensor: 0.0,
    _aten.mul.Tensor: 1.0,
    _aten.mul.Scalar: 1.0,
    _aten.div.Tensor: 1.0,
    _aten.div.Scalar: 1.0,
    _aten.pow.Tensor_Scalar: 1.0,
}
_COMMUTATIVE = frozenset([_aten.add.Tensor, _aten.mul.Tensor])
_SCALABLE = frozenset([_aten.mul.Tensor, _aten.div.Tensor])


def simplify(graph: Graph) -> Graph:
    """The same computation in fewer nodes."""
    return _Simplifier(graph).run()


class _Simplifier:
    """Visits the nodes in order; `_name` maps a removed result to the value in its place."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._metas = graph, dict(graph.metas)
        self._name: dict[int, int] = {}
        # A view is its root, offset, shape and strides; two that agree in these are one.
        self._root: dict[int, int] = {}
        self._views: dict[tuple[int, TensorMeta], int] = {}
        self._lazy: set[int] = set()
        self._first: dict[Any, Node] = {}
        self._filled = FilledTensors(self._metas)

    def run(self) -> Graph:
        """The graph without the nodes that compute nothing new."""
        graph = self._graph
        visited = map(self._visit, eliminate_dead_code(graph.nodes, graph.outputs))
        nodes = [node for node in visited if node is not None]
        outputs = [self._name.get(number, number) for number in graph.outputs]
        nodes = eliminate_dead_code(nodes, outputs)
        return replace(graph, nodes=nodes, outputs=outputs, metas=self._metas)

    def _visit(self, node: Node) -> Node | None:
        """The node as it stays, on the values in their new names; None if it is removed."""
        before = node
        if not self._name.keys().isdisjoint(node.reads()):
            node = rename(node, lambda number: self._name.get(number, number))
        self._move_view(before, node)
        if node.guard is None and node.single:
            self._filled.visit(node)
            node = self._squared(self._scaled(node))
            same = self._same_as(node)
            if same is not None:
                self._name[node.results[0]] = same  # pyright: ignore[reportArgumentType]
                return None
        key = (node.function, _frozen(node.args), _frozen(tuple(sorted(node.kwargs.items()))))
        first = self._first.setdefault(key, node)
        if first is node:
            return node
        for ours, theirs in zip(node.results, first.results, strict=True):
            if ours is not None and theirs is not None:
                self._name[ours] = theirs
        return None

    def _move_view(self, before: Node, after: Node) -> None:
        """Correct the offset of a view whose argument now lies elsewhere in its memory."""
        if not is_view(after.function):
            return
        traced = self._graph.metas
        offset = self._metas[after.args[0].index].offset - traced[before.args[0].index].offset
        for result in after.results:
            if result is not None and offset:
                self._metas[result] = replace(traced[result], offset=traced[result].offset + offset)

    def _scaled(self, node: Node) -> Node:
        """x u as x c for a tensor u filled with c, which then need not be read."""
        if node.function not in _SCALABLE or node.kwargs:
            return node
        for x, u in self._operands(node):
            value = self._filled.fill_value(u) if isinstance(u, Value) else None
            if value is not None and self._has_layout_of(x, node):
                return replace(node, args=(x, value))
        return node

    def _squared(self, node: Node) -> Node:
        """x^2 as x x, which torch computes it as, and derivatives of other terms have."""
        (result,) = node.results
        if node.function is not _aten.pow.Tensor_Scalar or result is None or node.args[1] != 2:
            return node
        x = node.args[0]
        is_real = self._metas[result].dtype.is_floating_point and self._has_layout_of(x, node)
        return replace(node, function=_aten.mul.Tensor, args=(x, x)) if is_real else node

    def _same_as(self, node: Node) -> int | None:
        """The earlier value that a node computes again."""
        (result,) = node.results
        source = node.args[0].index if node.args and isinstance(node.args[0], Value) else None
        if result is None or source is None:
            return None
        if node.function in LAZY_VIEWS or (source in self._lazy and is_view(node.function)):
            self._lazy.add(result)
        elif source in self._lazy:
            return None  # a copy has the entries in memory, as some operations need them
        if node.function in _NEUTRAL:
            return self._without_neutral_operand(node)
        if node.function in _IDENTITIES:
            return source if self._metas[result].same_layout(self._metas[source]) else None
        if not is_view(node.function) or node.function in LAZY_VIEWS:
            return None
        root = self._root.get(source, source)
        if not self._metas[root].is_dense:
            return None
        view = (root, self._metas[result])
        if self._metas[root] == self._metas[result]:
            return root
        self._root[result] = root
        first = self._views.setdefault(view, result)
        return None if first == result else first

    def _without_neutral_operand(self, node: Node) -> int | None:
        """x, for x + 0, 1 x, x / 1 or x^1."""
        if node.kwargs:
            return None
        for x, other in self._operands(node):
            if self._filled.fill_value(other) == _NEUTRAL[node.function] and self._has_layout_of(
                x, node
            ):
                return x.index
        return None

    def _operands(self, node: Node) -> list[tuple[Any, Any]]:
        """(x, other), and (other, x) if the operation commutes."""
        x, other = node.args[:2]
        return [(x, other), (other, x)] if node.function in _COMMUTATIVE else [(x, other)]

    def _has_layout_of(self, x: Any, node: Node) -> bool:
        """Whether the result has the shape, strides and dtype of x."""
        (result,) = node.results
        assert result is not None
        return isinstance(x, Value) and self._metas[x.index].same_layout(self._metas[result])


def _frozen(argument: Any) -> Any:
    """A hashable form of an argument, in which 1, 1.0 and True differ."""
    if isinstance(argument, (list, tuple)):
        return tuple(map(_frozen, argument))
    return argument if isinstance(argument, Value) else (type(argument), repr(argument))
