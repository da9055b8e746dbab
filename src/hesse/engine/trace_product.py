# SPDX-License-Identifier: Apache-2.0
"""From a product as autograd takes it to the programs that take its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.ad.definition import Kind, Retained
from hesse.ad.generators import generator_states, same_states
from hesse.ad.variables import Leaves, Variables, number
from hesse.engine.closeness import agree, difference
from hesse.engine.options import Request
from hesse.tracing.functionalize import retrace, trace
from hesse.tracing.graph import Graph, UntraceableError
from hesse.tracing.partition import Partition, Tangent, partition
from hesse.tracing.passes.join_slices import join_slices
from hesse.tracing.passes.simplify import simplify
from hesse.tracing.passes.weight_gradients import rewrite_weight_gradients
from hesse.tracing.precision import has_units, units
from hesse.tracing.program import run


@dataclass
class Recording:
    """The programs, and what they gave at the point at which they were recorded."""

    split: Partition
    value: Tensor
    gradient: list[Tensor] | None
    """Unless memory counts for more."""
    residuals: list[Tensor]
    product: Tensor
    eps: float
    """How coarsely the programs compute a product."""
    value_eps: float
    """How coarsely they compute the value."""
    value_error: float
    """How far theirs is from that of f."""
    error: float | None
    """Of a product in reduced precision, where that was asked for and is possible."""
    recomputes: bool
    """Whether f computes activations again, so that its gradient must be checked."""


def record_programs(
    kind: Kind,
    function: Any,
    variables: Variables,
    data: list[Tensor],
    v: Tensor,
    request: Request,
) -> Recording:
    """Record the product in the direction v, a flat vector, split it, and run the programs.

    Raises:
        UntraceableError: they do not repeat what was recorded; as `trace`.
    """
    x = list(variables.x)
    seen, before = _Seen(kind, function, variables, v), generator_states()
    inputs = [*x, *data, v]
    graph = simplify(trace(seen.everything, inputs))
    rewritten = rewrite_weight_gradients(graph)
    if rewritten is not None:
        graph = simplify(retrace(rewritten, inputs))
    graph = join_slices(graph)
    if not same_states(before, generator_states()):
        raise UntraceableError("the function draws random numbers outside of torch")
    reduced = has_units(request.precision, x[0].device)
    programs = _split(graph, len(x), kind.quantities, request, bfloat16=reduced)
    value, *rest = run(programs.primal_and_gradient, [*x, *data])
    value_error = difference([value], [seen.value])
    gradient = None if request.is_thrifty else rest[: len(x)]
    residuals = rest[len(x) :]
    del rest
    eps, expected = (
        max(graph.eps, torch.finfo(torch.bfloat16).eps if reduced else 0.0),
        seen.product,
    )
    error = None
    # Twice, from the same residuals: an operation that hides what it shares memory with could have
    # been overwritten.
    for _ in range(2):
        with units(request.precision):
            product = run(programs.tangents["product"], [*residuals, v])
        if not agree(product, expected, eps):
            raise UntraceableError("the program does not repeat the product that was recorded")
        if reduced and error is None:
            error = difference(product, expected)
        seen.product = expected = product
        del product
    return Recording(
        *(programs, number(value), gradient, residuals, expected[0], eps, graph.eps, value_error),
        *(error, seen.recomputes),
    )


class _Seen:
    """What is recorded, and what must be remembered of it."""

    def __init__(self, kind: Kind, function: Any, variables: Variables, v: Tensor) -> None:
        self._kind, self._function, self._variables, self._v = kind, function, variables, v
        self.product: list[Tensor] = []
        self.value = torch.empty(())
        self.recomputes = False

    def everything(self) -> list[Tensor]:
        """The value, the gradient, and the quantities of the kind."""
        graph = self._kind.retain(self._function, self._variables.x)
        if graph.custom is not None:
            raise UntraceableError(f"the custom function {graph.custom} is foreign to it")
        self.recomputes, self.value = graph.recomputes, graph.value
        outputs, directions = [graph.value, *graph.gradient], self._variables.split(self._v)
        for quantity in self._kind.quantities:
            outputs.append(taken(graph, quantity, self._variables, directions))
            if quantity == "product":
                self.product = outputs[-1:]
        return outputs


def taken(graph: Retained, quantity: str, variables: Variables, directions: Leaves) -> Tensor:
    """A quantity as one tensor: the leaves of a product are joined."""
    result = getattr(graph, quantity)(directions)
    return result if isinstance(result, Tensor) else variables.join(result)


def _split(
    graph: Graph, n: int, quantities: Sequence[str], request: Request, *, bfloat16: bool
) -> Partition:
    outputs = zip(quantities, graph.outputs[1 + n :], strict=True)
    return partition(
        graph,
        graph.outputs[: 1 + n],
        {name: Tangent(graph.inputs[-1:], [number]) for name, number in outputs},
        bfloat16=bfloat16 and request.precision == "medium",
        low_memory=request.is_thrifty,
    )
