# SPDX-License-Identifier: Apache-2.0
"""Operations of the backward pass that give several gradients compute only those that are used.

A program of the operands of weight gradients does not read the weight gradients of convolutions,
which take half the time of a `convolution_backward`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from hesse.tracing.graph import Graph, Node, eliminate_dead_code

_aten = torch.ops.aten

# Their last argument says which of three results to compute; the others are None.
_MASKED = frozenset(
    [
        _aten.convolution_backward.default,
        _aten.native_batch_norm_backward.default,
        _aten.native_group_norm_backward.default,
        _aten.native_layer_norm_backward.default,
    ]
)


def without_unused_results(graph: Graph, outputs: Iterable[int]) -> Graph:
    """The graph without what these outputs do not depend on."""
    outputs = list(outputs)
    nodes = eliminate_dead_code(graph.nodes, outputs)
    used = {number for node in nodes for number in node.reads()} | set(outputs)
    nodes = [_masked(node, used) if node.function in _MASKED else node for node in nodes]
    return replace(graph, nodes=nodes, outputs=outputs)


def _masked(node: Node, used: set[int]) -> Node:
    results = tuple(number if number in used else None for number in node.results)
    mask = [
        asked and number is not None for asked, number in zip(node.args[-1], results, strict=True)
    ]
    return replace(node, args=(*node.args[:-1], mask), results=results)
