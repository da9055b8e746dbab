# SPDX-License-Identifier: Apache-2.0
"""What an operation reads for its shape alone need not hold entries.

| operation | X becomes |
|---|---|
| `pool_backward(g, X, i)` | one entry, expanded to the shape of X |
| `convolution_backward(g, X, W)`, the gradient in X alone | memory of the shape of X |

A block of directions would hold a copy of X for each direction. Torch makes the X of a convolution
contiguous: one that is expanded would be written out, which can take as long as the convolution.
Memory that nobody touches takes no time, and no page of the system.

On the CPU, where it is known that nothing reads the entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from hesse.tracing.graph import (
    Graph,
    Node,
    TensorMeta,
    Value,
    eliminate_dead_code,
    new_numbers,
)

_aten = torch.ops.aten

_POOLING = frozenset(
    [
        _aten.max_pool2d_with_indices_backward.default,
        _aten.max_pool3d_with_indices_backward.default,
    ]
)


def without_entries(graph: Graph) -> Graph:
    """The same computation, in which these operands stand for their shape alone."""
    numbers = new_numbers(graph.metas)
    nodes = [part for node in graph.nodes for part in _with_shape_alone(node, graph, numbers)]
    return replace(graph, nodes=eliminate_dead_code(nodes, graph.outputs))


def _with_shape_alone(node: Node, graph: Graph, numbers: Iterator[int]) -> list[Node]:
    if node.function in _POOLING:
        return _pooling(node, graph, numbers)
    if node.function is _aten.convolution_backward.default:
        return _convolution(node, graph, numbers)
    return [node]


def _pooling(node: Node, graph: Graph, numbers: Iterator[int]) -> list[Node]:
    g, X, *rest = node.args
    meta = graph.metas[X.index]
    if meta.device.type != "cpu" or not meta.is_contiguous:
        return [node]
    scalar, shape = next(numbers), next(numbers)
    graph.metas[scalar] = TensorMeta((), (), 0, meta.dtype, meta.device)
    graph.metas[shape] = replace(meta, stride=(0,) * len(meta.shape), offset=0)
    return [
        Node(_aten.new_empty.default, (g, []), {}, (scalar,), True),
        Node(_aten.expand.default, (Value(scalar), list(meta.shape)), {}, (shape,), True),
        replace(node, args=(g, Value(shape), *rest)),
    ]


def _convolution(node: Node, graph: Graph, numbers: Iterator[int]) -> list[Node]:
    g, X, *rest, mask = node.args
    meta, like = graph.metas[X.index], graph.metas[g.index]
    is_read = mask[1] or not mask[0] or (meta.dtype, meta.device) != (like.dtype, like.device)
    if is_read or meta.device.type != "cpu" or any(meta.stride):
        return [node]  # an X of which each entry is there costs nothing
    memory, strides = next(numbers), torch.empty(meta.shape, device="meta").stride()
    graph.metas[memory] = replace(meta, stride=strides, offset=0)
    return [
        Node(_aten.new_empty.default, (g, list(meta.shape)), {}, (memory,), True),
        replace(node, args=(g, Value(memory), *rest, mask)),
    ]
