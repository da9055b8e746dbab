# SPDX-License-Identifier: Apache-2.0
"""From a product by autograd to the programs that take its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.ad.definition import Quantity, Vectors
from hesse.ad.torch_calls import same_states, states_outside_of_torch
from hesse.ad.variables import number
from hesse.engine.closeness import agree, difference
from hesse.engine.graph_product import apply_graph
from hesse.engine.options import ProductOptions
from hesse.engine.point import Point
from hesse.tracing.functionalize import retrace, trace
from hesse.tracing.graph import Graph, UntraceableError
from hesse.tracing.partition import Partition, Tangent, partition
from hesse.tracing.passes.join_slices import join_slices
from hesse.tracing.passes.pooling import mask_before_pooling
from hesse.tracing.passes.simplify import simplify
from hesse.tracing.passes.weight_gradients import rewrite_weight_gradients
from hesse.tracing.precision import has_units, units
from hesse.tracing.program import run


@dataclass(frozen=True)
class TracedProduct:
    """The programs, and what they gave at the point where they were traced."""

    partition: Partition
    outputs: list[Tensor]
    gradient: list[Tensor] | None
    """Unless memory counts for more than time."""
    residuals: list[Tensor]
    result: Tensor
    """The product with the direction that was given."""
    eps: float
    """The rounding of a product."""
    output_eps: float
    """The rounding of the outputs."""
    output_error: float
    """How far the outputs of the program are from those of f."""
    error: float | None
    """Of a product in reduced precision, where that was asked for and is possible."""
    needs_check: bool
    """Whether the gradient of f must be checked, outside of a trace."""


def trace_product(
    point: Point, directions: Mapping[Vectors, Tensor], options: ProductOptions
) -> TracedProduct:
    """Trace the quantities of a definition in these directions, and partition and run the graph.

    Raises:
        UntraceableError: the programs do not repeat what was traced; as `trace`.
    """
    traced, before = _Traced(point, directions), states_outside_of_torch()
    inputs = [*point.inputs, *directions.values()]
    graph = simplify(trace(traced.everything, inputs))
    rewritten = rewrite_weight_gradients(graph)
    if rewritten is not None:
        graph = simplify(retrace(rewritten, inputs))
    graph = mask_before_pooling(join_slices(graph))
    # Draws of torch are in the trace; the state of its generators is that of other threads too.
    if not same_states(before, states_outside_of_torch()):
        raise UntraceableError("the function draws random numbers outside of torch")
    reduced = has_units(options.precision, inputs[0].device)
    programs = _partition(graph, point, list(directions), traced, options, bfloat16=reduced)
    results = run(programs.primal_and_gradient, point.inputs)
    n, m = len(traced.outputs), traced.num_primal
    outputs, gradient, residuals = results[:n], results[n:m], results[m:]
    del results
    if options.low_memory:
        gradient = None
    output_error = difference(outputs, traced.outputs)
    eps = max(graph.eps, torch.finfo(torch.bfloat16).eps if reduced else 0.0)
    error = _check(programs, residuals, traced, directions, options, eps, reduced)
    return TracedProduct(
        programs,
        [number(part) if part.ndim == 0 else part for part in outputs],
        *(gradient, residuals, traced.results["product"], eps, graph.eps, output_error, error),
        traced.needs_check,
    )


def _check(
    programs: Partition,
    residuals: list[Tensor],
    traced: _Traced,
    directions: Mapping[Vectors, Tensor],
    options: ProductOptions,
    eps: float,
    reduced: bool,
) -> float | None:
    """Raise unless programs repeat the products; the error of one in reduced precision.

    A program must leave its arguments as they are: an operation that hides what it shares memory
    with could overwrite residuals. The results of the programs take the place of those that were
    traced.
    """
    error = None
    for quantity in traced.point.definition.quantities:
        if quantity.result is None:
            traced.results.pop(quantity.name, None)
            continue
        expected = traced.results.pop(quantity.name)
        arguments = [*residuals, directions[quantity.direction]]
        before = _sums(arguments)
        with units(options.precision):
            (ours,) = run(programs.tangents[quantity.name], arguments)
        if not agree([ours], [expected], eps):
            raise UntraceableError("the program does not repeat the product that was traced")
        if _sums(arguments) != before:
            raise UntraceableError("the program writes to its residuals")
        if reduced and error is None:
            error = difference([ours], [expected])
        traced.results[quantity.name] = ours
        del expected, ours
    return error


def _sums(tensors: list[Tensor]) -> list[str]:
    """The sum of each, as text, so that NaN equals itself; changes when one is overwritten."""
    return [str(tensor.sum().item()) for tensor in tensors]


class _Traced:
    """What is traced, and what must be remembered of it."""

    def __init__(self, point: Point, directions: Mapping[Vectors, Tensor]) -> None:
        self.point, self._directions = point, directions
        self.outputs: list[Tensor] = []
        self.num_primal = 0
        self.results: dict[str, Tensor] = {}
        self.needs_check = False

    def everything(self) -> list[Tensor]:
        """The outputs, the gradient, and the quantities of the definition."""
        point = self.point
        graph = point.definition.linearise(point.function, point.variables.x)
        if graph.custom_function is not None:
            name = graph.custom_function
            raise UntraceableError(f"the custom function {name} is foreign to it")
        self.outputs, self.needs_check = graph.outputs, graph.needs_check
        traced = [*self.outputs, *graph.gradient]
        self.num_primal = len(traced)
        for quantity in point.definition.quantities:
            result = apply_graph(graph, point, quantity, self._directions[quantity.direction])
            traced.append(result)
            if quantity.result is not None:
                self.results[quantity.name] = result
        return traced


def _partition(
    graph: Graph,
    point: Point,
    vectors: list[Vectors],
    traced: _Traced,
    options: ProductOptions,
    *,
    bfloat16: bool,
) -> Partition:
    directions = dict(zip(vectors, graph.inputs[-len(vectors) :], strict=True))
    quantities: tuple[Quantity, ...] = point.definition.quantities
    results = graph.outputs[traced.num_primal :]
    return partition(
        graph,
        graph.outputs[: traced.num_primal],
        {
            quantity.name: Tangent([directions[quantity.direction]], [result])
            for quantity, result in zip(quantities, results, strict=True)
        },
        bfloat16=bfloat16 and options.precision == "medium",
        low_memory=options.low_memory,
        measured_kernels=options.cost_model.measures,
    )
