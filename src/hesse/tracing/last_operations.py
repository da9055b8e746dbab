# SPDX-License-Identifier: Apache-2.0
r"""What the last operations of a gradient say about its factors.

In a graph of J'u the gradient of a weight is computed last by an operation of two operands, one
that depends on u and one that does not: g' a for a linear layer, a convolution of g with the inputs
for a convolution. Each entry of the result is a sum over rows r of l_r[i] r_r[j], with l and r the
rows of the operands: this is all that a Kronecker factorisation needs, whatever module the weight
is in. `read_uses` follows every gradient back through views, sums and concatenations to such
operations.

| operation | rows |
|---|---|
| `mm`, `bmm` | of both operands; `bmm` has one matrix for each batch index |
| `_grouped_mm` | the same, with rows for each group of experts |
| `convolution_backward` | positions of the outputs, with patches of the inputs |
| `embedding_dense_backward`, `index_put` | places of the indices; l is one at the index |
| `sum`, norms | the summed tensor itself: no factors, but the gradient row by row |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hesse.tracing.entry_order import PADDINGS, REORDERINGS, RESHAPES, nowhere, replayed
from hesse.tracing.graph import Graph, Node, Value, dependent_values
from hesse.tracing.uses import Rule, Use

_aten = torch.ops.aten


def read_uses(graph: Graph, gradients: list[int], directions: list[int]) -> list[list[Use]]:
    """The uses of each parameter, from the values that are its gradient; none if that is zero."""
    reader = _Reader(graph, set(directions))
    return [reader.uses(number) for number in gradients]


def makers_of(graph: Graph) -> dict[int, Node]:
    """The node that makes each value."""
    return {n: node for node in graph.nodes for n in node.makes()}


def row_tensor(graph: Graph, makers: Mapping[int, Node], use: Use) -> tuple[int, bool]:
    """What the rows of g are views of, and whether transposed; a bias shares it with its weight.

    One number, of one example with one output, is its own transpose, which torch leaves out.
    """
    number, transposed = use.g, use.rule == "mm" and use.g_is_left != use.is_swapped
    while (node := makers.get(number)) is not None:
        if node.function is _aten.t.default:
            transposed = not transposed
        elif node.function not in RESHAPES:
            break
        number = node.reads()[0]
    return number, transposed and math.prod(graph.metas[number].shape) > 1


class _Reader:
    """Follows values of a graph back to the operations that sum over rows."""

    def __init__(self, graph: Graph, directions: set[int]) -> None:
        self._makers = makers_of(graph)
        self._metas = graph.metas
        self._tangent = dependent_values(graph.nodes, directions)
        self._rules: dict[Any, Callable[[Node, int], Use | None]] = {
            _aten.mm.default: self._matrix_product,
            _aten.bmm.default: self._matrix_product,
            _aten.convolution_backward.default: self._convolution,
            _aten.embedding_dense_backward.default: self._embedding,
            _aten.index_put.default: self._index_put,
            _aten.sum.dim_IntList: self._sum,
            _aten.sum.default: self._total,
            _aten.native_batch_norm_backward.default: self._batch_norm,
            _aten.native_group_norm_backward.default: self._group_norm,
        }
        if hasattr(_aten, "_grouped_mm"):
            self._rules[_aten._grouped_mm.default] = self._grouped_product

    def uses(self, number: int) -> list[Use]:
        """The uses that a value is the sum of."""
        if number not in self._tangent:
            return []
        node = self._makers.get(number)
        if node is None:
            return [self._unknown(number, "the direction itself")]
        function = node.function
        if function in RESHAPES:
            source = node.reads()[0]
            return [self._reshaped(use, number) for use in self.uses(source)]
        if function in REORDERINGS:
            return [self._reordered(use, node, number) for use in self.uses(node.reads()[0])]
        if function is _aten.add.Tensor and self._adds_like(node, number):
            return [use for part in node.reads() for use in self.uses(part)]
        if function in (_aten.cat.default, _aten.stack.default):
            return self._joined(node, number)
        if function in PADDINGS:
            return [self._padded(use, node, number) for use in self.uses(node.args[0].index)]
        scale = _scale(node)
        if scale is not None:
            uses = self.uses(node.args[0].index)
            return [replace(use, scale=scale * use.scale) for use in uses]
        if function is _aten.mul.Tensor and (found := self._multiplied(node, number)):
            return found
        return [self._last(node, number)]

    # -- Between the last operation and the parameter ----------------------------------------------

    def _reshaped(self, use: Use, number: int) -> Use:
        if use.order is None:
            return use
        return replace(use, order=use.order.reshape(self._metas[number].shape))

    def _reordered(self, use: Use, node: Node, number: int) -> Use:
        """A use behind a node that reorders entries; a transposed matrix exchanges its sides."""
        source = self._metas[node.reads()[0]].shape
        is_matrix = len(source) == 2 and use.is_factored and use.shape == (1, *source)
        transposes = node.function in (_aten.t.default, _aten.transpose.int)
        if use.order is None and is_matrix and transposes:
            return use.transposed()
        order = self._order(use, source)
        return replace(use, order=replayed(node, number, order))

    def _joined(self, node: Node, number: int) -> list[Use]:
        parts = [value.index for value in node.args[0]]
        uses = []
        for position, part in enumerate(parts):
            for use in self.uses(part):
                shapes = [self._metas[n].shape for n in parts]
                orders = [nowhere(shape) for shape in shapes]
                orders[position] = self._order(use, shapes[position])
                order = node.function(orders, *node.args[1:], **node.kwargs)
                uses.append(replace(use, order=order))
        return uses

    def _padded(self, use: Use, node: Node, number: int) -> Use:
        order = self._order(use, self._metas[node.args[0].index].shape)
        return replace(use, order=PADDINGS[node.function](order, node.args))

    def _multiplied(self, node: Node, number: int) -> list[Use]:
        """The uses behind a product with a tensor that is one number, or is as large as the rows.

        So are parameters of which the model takes the exponential, the square, ...
        """
        if not all(isinstance(part, Value) for part in node.args[:2]):
            return []
        x, c = (part.index for part in node.args[:2])
        x, c = (c, x) if x not in self._tangent else (x, c)
        shapes = [self._metas[n].shape for n in (x, c, number)]
        is_number = math.prod(shapes[1]) == 1 and shapes[0] == shapes[2]
        if c in self._tangent or not (is_number or shapes[0] == shapes[1] == shapes[2]):
            return []
        uses = self.uses(x)
        if any(use.order is not None or not (is_number or _has_rows(use)) for use in uses):
            return []
        return [replace(use, multipliers=(*use.multipliers, c)) for use in uses]

    def _order(self, use: Use, shape: tuple[int, ...]) -> Tensor:
        if use.order is not None:
            return use.order
        return torch.arange(math.prod(shape)).reshape(shape)

    def _adds_like(self, node: Node, number: int) -> bool:
        """Whether a sum is one of tensors of its shape, each taken once."""
        shapes = {self._metas[n].shape for n in (*node.reads(), number)}
        return len(shapes) == 1 and len(node.reads()) == 2 and not node.kwargs

    # -- Last operations ---------------------------------------------------------------------------

    def _last(self, node: Node, number: int) -> Use:
        reader = self._rules.get(node.function)
        use = None if reader is None else reader(node, node.results.index(number))
        return self._unknown(number, _name(node.function)) if use is None else use

    def _unknown(self, number: int, operation: str) -> Use:
        """The gradient itself, which is one row; a rule for a single example only."""
        size = math.prod(self._metas[number].shape)
        return Use("own gradient", operation, number, shape=(size,))

    def _matrix_product(self, node: Node, result: int) -> Use | None:
        x, y = (value.index for value in node.args[:2])
        left, right = x in self._tangent, y in self._tangent
        if left == right:
            return None
        *batch, p, _ = self._metas[x].shape
        q = self._metas[y].shape[-1]
        rule: Rule = "bmm" if batch else "mm"
        return Use(
            *(rule, _name(node.function), x if left else y, (y if left else x,)),
            *((*(batch or [1]), p, q), (), left),
        )

    def _grouped_product(self, node: Node, result: int) -> Use | None:
        """x y where every group (of experts) has some of the columns of x and rows of y."""
        x, y, offsets, *_ = (value.index for value in node.args if isinstance(value, Value))
        left, right = x in self._tangent, y in self._tangent
        shapes = [self._metas[n].shape for n in (x, y)]
        if left == right or offsets in self._tangent or {len(s) for s in shapes} != {2}:
            return None
        groups = math.prod(self._metas[offsets].shape)
        g, a = (x, y) if left else (y, x)
        return Use(
            *("grouped mm", _name(node.function), g, (a, offsets)),
            *((groups, shapes[0][0], shapes[1][1]), (), left),
        )

    def _convolution(self, node: Node, result: int) -> Use | None:
        g, x, weight = (value.index for value in node.args[:3])
        if g not in self._tangent or x in self._tangent or result == 0:
            return None
        groups, is_transposed = node.args[9], node.args[7]
        if result == 2:
            size = self._metas[g].shape[1]
            return Use("channel sum", _name(node.function), g, shape=(size,))
        first, second, *kernel = self._metas[weight].shape
        d = len(kernel)
        stride, padding, dilation = (
            tuple(option) * (d if len(option) == 1 else 1) for option in node.args[4:7]
        )
        places = self._metas[x if is_transposed else g].shape[2:]
        return Use(
            "transposed convolution" if is_transposed else "convolution",
            _name(node.function),
            g,
            (x,),
            (groups, first // groups, second * math.prod(kernel)),
            (tuple(kernel), stride, padding, dilation, groups, tuple(places)),
            g_is_left=not is_transposed,
        )

    def _embedding(self, node: Node, result: int) -> Use | None:
        g, indices = (value.index for value in node.args[:2])
        size, padding, by_frequency = node.args[2:5]
        if by_frequency or indices in self._tangent:
            return None
        d = self._metas[g].shape[-1]
        g, summed = self._before_broadcast(g)
        return Use(
            *(
                "embedding",
                _name(node.function),
                g,
                (indices,),
                (1, size, d),
                (padding, size, summed[:-1]),
            ),
            g_is_left=False,
        )

    def _index_put(self, node: Node, result: int) -> Use | None:
        """The gradient of weight[indices]."""
        base, places, g = node.args[0].index, node.args[1], node.args[2].index
        accumulates = len(node.args) > 3 and node.args[3]
        shape = self._metas[base].shape
        if base in self._tangent or not accumulates or len(places) != 1 or len(shape) != 2:
            return None
        indices = places[0].index
        places_shape = tuple(self._metas[g].shape[:-1])
        if self._metas[indices].dtype is torch.bool or not _is_zero(self._makers.get(base)):
            return None
        return Use(
            *(
                "embedding",
                _name(node.function),
                g,
                (indices,),
                (1, *shape),
                (-1, shape[0], places_shape),
            ),
            g_is_left=False,
        )

    def _before_broadcast(self, g: int) -> tuple[int, tuple[int, ...]]:
        """The tensor behind a sum over leading dimensions, and the shape of that sum, with ones.

        A batch that shares its positions adds up their gradients.
        """
        number, shape = g, self._metas[g].shape
        node: Node | None = self._makers.get(number)
        while node is not None and node.function in RESHAPES:
            number = node.reads()[0]
            node = self._makers.get(number)
        if node is None or node.function is not _aten.sum.dim_IntList:
            return g, tuple(shape)
        (source, *_), dims = node.reads(), node.args[1]
        whole = self._metas[source].shape
        dims = {dim % len(whole) for dim in dims}
        summed = tuple(1 if i in dims else n for i, n in enumerate(whole))
        if len(whole) - 1 in dims or [n for n in summed if n > 1] != [n for n in shape if n > 1]:
            return g, tuple(shape)
        return source, summed

    def _sum(self, node: Node, result: int) -> Use | None:
        g = node.args[0].index
        shape = self._metas[g].shape
        dims = tuple(sorted(dim % len(shape) for dim in (node.args[1] or range(len(shape)))))
        size = math.prod(n for i, n in enumerate(shape) if i not in dims)
        return Use("sum", _name(node.function), g, shape=(size,), settings=(dims,))

    def _total(self, node: Node, result: int) -> Use | None:
        g = node.args[0].index
        dims = tuple(range(len(self._metas[g].shape)))
        return Use("sum", _name(node.function), g, shape=(1,), settings=(dims,))

    def _batch_norm(self, node: Node, result: int) -> Use | None:
        g, x = node.args[0].index, node.args[1].index
        trains, eps = node.args[7:9]
        statistics = node.args[5:7] if trains else node.args[3:5]
        if g not in self._tangent or x in self._tangent or result == 0:
            return None
        size = self._metas[x].shape[1]
        if result == 2:
            return Use("channel sum", _name(node.function), g, shape=(size,))
        a = (x, *(value.index for value in statistics))
        return Use("batch norm", _name(node.function), g, a, (size,), (bool(trains), eps))

    def _group_norm(self, node: Node, result: int) -> Use | None:
        g, x, mean, rstd = (value.index for value in node.args[:4])
        channels, groups = node.args[6], node.args[8]
        if g not in self._tangent or x in self._tangent or result == 0:
            return None
        if result == 2:
            return Use("channel sum", _name(node.function), g, shape=(channels,))
        return Use("group norm", _name(node.function), g, (x, mean, rstd), (channels,), (groups,))


def _has_rows(use: Use) -> bool:
    return not use.is_factored and use.rule != "own gradient"


def _scale(node: Node) -> float | None:
    """The number that a node multiplies its first argument with, if that is all it does."""
    if node.function is _aten.neg.default:
        return -1.0
    if len(node.args) != 2 or node.kwargs or isinstance(node.args[1], Value):
        return None
    if not isinstance(node.args[0], Value) or not isinstance(node.args[1], (int, float)):
        return None
    if node.function in (_aten.mul.Tensor, _aten.mul.Scalar):
        return float(node.args[1])
    if node.function in (_aten.div.Tensor, _aten.div.Scalar) and node.args[1]:
        return 1.0 / node.args[1]
    return None


def _is_zero(node: Node | None) -> bool:
    """Whether a node makes zeros."""
    if node is None:
        return False
    if node.function in (_aten.full.default, _aten.new_full.default):
        return any(
            argument == 0 for argument in node.args[1:] if isinstance(argument, (int, float))
        )
    return node.function in (_aten.zeros.default, _aten.new_zeros.default, _aten.zeros_like.default)


def _name(function: Any) -> str:
    return str(function).removeprefix("aten.").split(".")[0]
