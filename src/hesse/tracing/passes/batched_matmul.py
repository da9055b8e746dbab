# SPDX-License-Identifier: Apache-2.0
"""Rewrite a batch of products with one matrix as a single matrix product, which reads it once.

    bmm(A expanded to a batch, k columns v_i)  ->  mm(rows v_i', A')

`vmap` over directions leaves such a batch where a matrix multiplies each direction. The entries of
the result are the same sums of products; a kernel may add them up in another order.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from hesse.tracing.graph import Graph, Node, Value, eliminate_dead_code, new_numbers
from hesse.tracing.passes.builder import Builder

_aten = torch.ops.aten


def merge_batched_matmuls(graph: Graph) -> Graph:
    """The same computation with `mm` in the place of such a `bmm`; adds to the metas."""
    maker = {number: node for node in graph.nodes for number in node.makes()}
    numbers, nodes = new_numbers(graph.metas), []
    for node in graph.nodes:
        (result, *_) = node.results
        if node.function is not _aten.bmm.default or result is None:
            nodes.append(node)
            continue
        builder = Builder(graph.metas, numbers)
        nodes += builder.instead_of(node) if _merge(node, graph, maker, builder) else [node]
    return replace(graph, nodes=eliminate_dead_code(nodes, graph.outputs))


def _merge(node: Node, graph: Graph, maker: dict[int, Node], builder: Builder) -> bool:
    """Build the single product of a batch; False if the batch is not of this form."""
    left, right = node.args
    if graph.metas[left.index].shape[1] == 1 and (matrix := _expanded(right, graph, maker)):
        rows = builder.call(_aten.select.int, left, 1, 0)
        product = builder.call(_aten.mm.default, Value(rows), matrix)
        builder.call(_aten.unsqueeze.default, Value(product), 1)
        return True
    if graph.metas[right.index].shape[2] == 1 and (matrix := _expanded(left, graph, maker)):
        rows = builder.call(_aten.select.int, right, 2, 0)
        transposed = builder.call(_aten.t.default, matrix)
        product = builder.call(_aten.mm.default, Value(rows), Value(transposed))
        builder.call(_aten.unsqueeze.default, Value(product), 2)
        return True
    return False


def _expanded(batch: Value, graph: Graph, maker: dict[int, Node]) -> Value | None:
    """The matrix that a batch is an expansion of; None if it is no such expansion."""
    node = maker.get(batch.index)
    if node is None or node.function is not _aten.expand.default:
        return None
    (matrix,) = node.reads()
    return Value(matrix) if len(graph.metas[matrix].shape) == 2 else None
