# SPDX-License-Identifier: Apache-2.0
"""Trace a function, and make the graph functional: no node writes to a tensor.

Autograd writes to tensors that it has just made and that have no views. Such a write becomes the
out-of-place operation, whose result gets a new number. Every other write is left to
`torch.func.functionalize`, whose first use in a process imports modules for a second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hesse.tracing.graph import (
    Graph,
    UntraceableError,
    last_reads,
    new_numbers,
    rename,
    replay_node,
)
from hesse.tracing.operations import is_view, writes
from hesse.tracing.tracer import Tracer
from hesse.tracing.transforms import NoNestedForwardMode

_aten = torch.ops.aten

# Pointwise, with a result in the dtype of the first argument if all arguments have one dtype.
_OUT_OF_PLACE = {
    _aten.add_.Tensor: _aten.add.Tensor,
    _aten.add_.Scalar: _aten.add.Scalar,
    _aten.sub_.Tensor: _aten.sub.Tensor,
    _aten.mul_.Tensor: _aten.mul.Tensor,
    _aten.mul_.Scalar: _aten.mul.Scalar,
    _aten.div_.Tensor: _aten.div.Tensor,
    _aten.div_.Scalar: _aten.div.Scalar,
    _aten.neg_.default: _aten.neg.default,
    _aten.relu_.default: _aten.relu.default,
    _aten.sigmoid_.default: _aten.sigmoid.default,
    _aten.tanh_.default: _aten.tanh.default,
}

# Views whose base, torch promises, is never read again.
_UNSAFE_SPLITS = {_aten.unsafe_split.Tensor, _aten.unsafe_split_with_sizes.default}


def trace(function: Callable[[], Sequence[Tensor]], inputs: Sequence[Tensor]) -> Graph:
    """The functional graph of function(), which computes from `inputs` and what it closes over.

    Args:
        function: without arguments; it reads the tensors `inputs` themselves.
        inputs: different tensors, none of them a view of another.

    Raises:
        UntraceableError: the function draws random numbers, returns sparse tensors, calls an
            operation that takes functions, or writes to a tensor that it did not make.
    """
    if len({id(tensor) for tensor in inputs}) != len(inputs):
        raise UntraceableError("the same tensor is given twice")
    with Tracer(inputs) as tracer, NoNestedForwardMode():
        outputs = function()
    graph = tracer.graph(outputs)
    del outputs  # they are as large as what is traced next
    if not any(writes(node.function) for node in graph.nodes):
        return graph
    functional = _without_writes(graph)
    if functional is None:
        return retrace(graph, inputs, torch.func.functionalize)
    graph, has_same_strides = functional
    return graph if has_same_strides else retrace(graph, inputs)


def _without_writes(graph: Graph) -> tuple[Graph, bool] | None:
    """The graph with a new value for every write, and whether its strides are still right.

    None if a tensor is written to that has views or is not ours, or by an unknown operation.
    """
    current: dict[int, int] = {}
    metas, numbers = dict(graph.metas), new_numbers(graph.metas)
    shared = {*graph.inputs, *graph.constants}
    nodes, same_strides = [], True
    for before in graph.nodes:
        node = rename(before, lambda number: current.get(number, number))
        if not writes(node.function):
            if is_view(node.function):
                parts = () if node.function in _UNSAFE_SPLITS else node.results
                shared.update(number for number in (*node.reads(), *parts) if number is not None)
            nodes.append(node)
            continue
        target = None if node.function not in _OUT_OF_PLACE else node.args[0].index
        one_dtype = len({metas[number].dtype for number in node.reads()}) == 1
        if target is None or target in shared or not one_dtype:
            return None
        same_strides &= metas[target].is_contiguous
        new = next(numbers)
        metas[new] = metas[target]
        current[before.args[0].index] = new
        nodes.append(replace(node, function=_OUT_OF_PLACE[node.function], results=(new,)))
    outputs = [current.get(number, number) for number in graph.outputs]
    return Graph(nodes, graph.inputs, outputs, graph.constants, metas), same_strides


def retrace(
    graph: Graph,
    inputs: Sequence[Tensor],
    transform: Callable[[Callable], Callable] = lambda replay: replay,
) -> Graph:
    """Run a graph on `inputs`, and trace that: its Python functions become operations.

    Args:
        graph: traced from the same inputs.
        transform: of the function that runs the graph, such as `torch.func.functionalize`.
    """
    constants = list(graph.constants.values())
    tensors = [tensor.detach() for tensor in (*inputs, *constants)]
    with torch.no_grad(), Tracer(tensors) as tracer:
        outputs = transform(_replay(graph))(*tensors)
    result = tracer.graph(outputs)
    known = {id(tensor) for tensor in tensors}
    if any(writes(node.function) for node in result.nodes):
        raise UntraceableError("it changes a tensor in place that it did not make")
    if any(id(tensor) not in known for tensor in result.constants.values()):
        raise UntraceableError("an in-place operation that has no functional form")
    n = len(inputs)
    result.constants = dict(zip(result.inputs[n:], constants, strict=True))
    result.inputs = result.inputs[:n]
    return result


def _replay(graph: Graph) -> Callable[..., list[Tensor]]:
    """A function that runs a graph on its inputs and constants, and frees tensors on the way."""
    numbers = [*graph.inputs, *graph.constants]
    # A constant that f makes may be written to by f: torch.tensor([1.0, 2.0])[0] = 3.0.
    lifted = [node for node in graph.nodes if node.function is _aten.lift_fresh.default]
    fresh = {node.args[0].index for node in lifted} & graph.constants.keys()
    dying = last_reads(graph.nodes, {*numbers, *graph.outputs})

    def replay(*tensors: Tensor) -> list[Tensor]:
        values: dict[int, Tensor] = dict(zip(numbers, tensors, strict=True))
        values.update((number, values[number].clone()) for number in fresh)
        for position, node in enumerate(graph.nodes):
            replay_node(node, values)
            for number in dying.get(position, ()):
                del values[number]
        return [values[number] for number in graph.outputs]

    return replay
