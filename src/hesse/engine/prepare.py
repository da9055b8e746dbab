# SPDX-License-Identifier: Apache-2.0
"""How a product comes about at a point: by a retained graph, a fresh trace, or a known program."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hesse.ad.definition import Quantity, Vectors
from hesse.ad.determinism import check_same
from hesse.engine.closeness import agree, fingerprint, rounding, same_fingerprint
from hesse.engine.compiler import VALUE_DIFFERS, mode_refused
from hesse.engine.graph_product import GraphProduct, apply_graph
from hesse.engine.kept_products import Product
from hesse.engine.point import Point
from hesse.engine.program_cache import CachedProgram
from hesse.engine.program_product import ProgramProduct
from hesse.engine.trace_product import TracedProduct, trace_product
from hesse.engine.validator import MAX_TRACES
from hesse.errors import HesseError, first_line
from hesse.tracing.precision import units
from hesse.tracing.program import run


class Prepared(NamedTuple):
    """A product at a point, and the result in the direction given where preparing it took that."""

    product: Product
    result: Tensor | None = None


def prepare(
    point: Point,
    entry: CachedProgram,
    quantity: Quantity,
    direction: Tensor,
    *,
    graph: GraphProduct | None = None,
    outputs: list[Tensor] | None = None,
    validated: bool = False,
    with_gradient: bool = False,
) -> Prepared:
    """The product at a point by the best way there is now.

    Args:
        point, entry: where, and the programs for points of this shape.
        quantity, direction: what will be taken first.
        graph: the graph at this point, if there is one already.
        outputs: those of f here, if they have been evaluated.
        validated: whether the programs were found right for this point and these data before.
        with_gradient: whether to hold on to the gradient that comes along.
    """
    for _ in range(MAX_TRACES):
        if entry.partition is not None:
            product = run_primal(
                point,
                entry,
                direction,
                outputs=outputs,
                validated=validated,
                with_gradient=with_gradient,
            )
            if product is not None:
                return Prepared(product)
            continue
        if not entry.cost_model.should_trace(entry.usage):
            break
        graph = graph or GraphProduct(point, entry)
        if entry.disabled:  # now that it is known what f is made of
            break
        directions = _directions(point, {quantity.direction: direction}, seed=0)
        sample, outputs = graph.sample(directions), graph.outputs
        directions[point.definition.quantities[0].direction] = sample.direction
        graph = None  # its memory is needed
        traced = _trace(point, entry, directions, outputs, sample.fingerprint)
        if traced is not None:
            gradient = traced.gradient if with_gradient else None
            product = ProgramProduct.of(point, entry, traced.residuals, traced.outputs, gradient)
            is_wanted = quantity.name == "product" and directions[quantity.direction] is direction
            reuse = is_wanted and not entry.usage.should_compile
            return Prepared(product, traced.result if reuse else None)
    if entry.options.mode in ("traced-split", "compiled-split"):
        raise mode_refused(entry, entry.notes[-1])
    return Prepared(graph or GraphProduct(point, entry))


def prepare_gradient(
    point: Point, entry: CachedProgram, held: Product | None, outputs: list[Tensor] | None
) -> Product:
    """A product at a point that has the gradient of f as well: the one that is held, or a new one.

    Args:
        held: the product at this point, if there is one already.
        outputs: those of f here, if they have been evaluated.
    """
    if held is not None and (not isinstance(held, ProgramProduct) or held.gradient is not None):
        return held
    product = None
    if entry.partition is not None:
        validated = held is not None
        product = run_primal(point, entry, outputs=outputs, validated=validated, with_gradient=True)
    return product or GraphProduct(point, entry)


def run_primal(
    point: Point,
    entry: CachedProgram,
    direction: Tensor | None = None,
    *,
    outputs: list[Tensor] | None = None,
    validated: bool = False,
    with_gradient: bool = False,
) -> ProgramProduct | None:
    """The product by the known programs; None if they are not right here, and were thrown away.

    The arguments are those of `prepare`.
    """
    try:
        if not validated:
            outputs = outputs or point.evaluate()
        return _run_primal(point, entry, direction, None if validated else outputs, with_gradient)
    except (HesseError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a guard, a shape that has changed, a context of the user's
        entry.invalidate(first_line(error))
        return None


def _run_primal(
    point: Point,
    entry: CachedProgram,
    direction: Tensor | None,
    expected: list[Tensor] | None,
    with_gradient: bool,
) -> ProgramProduct | None:
    partition = entry.partition
    assert partition is not None
    if expected is None and not with_gradient:
        return ProgramProduct.of(point, entry, run(partition.primal, point.inputs))
    program = partition.primal_and_gradient if with_gradient else entry.primal_and_outputs
    assert program is not None
    results = run(program, point.inputs)
    n = entry.num_outputs
    end = len(results) - len(partition.primal.outputs)
    outputs, gradient = results[:n], results[n:end] if with_gradient else None
    residuals = results[end:]
    del results
    if expected is not None:
        error = entry.validator.output_error(outputs, expected)
        if error is None:
            for one, two in zip(expected, point.evaluate(), strict=True):
                check_same(one, two)
            entry.invalidate(VALUE_DIFFERS)
            return None
        if entry.validator.is_due(error):
            del residuals  # not a graph and residuals at a time
            verified = _verify(point, entry, direction)
            if verified is None:
                return None
            entry.validator.widen_tolerance(error)
            residuals = verified
    return ProgramProduct.of(point, entry, residuals, expected, gradient)


def _verify(point: Point, entry: CachedProgram, direction: Tensor | None) -> list[Tensor] | None:
    """The residuals, if products are those of a graph, in random directions if memory allows."""
    partition, validator = entry.partition, entry.validator
    assert partition is not None
    given: dict[Vectors, Tensor] = {}
    if direction is not None and entry.options.low_memory:
        given["variables"] = direction
    directions = _directions(point, given, validator.num_points)
    quantities = [q for q in point.definition.quantities if q.result is not None]
    graph = point.definition.linearise(point.function, point.variables.x)
    theirs = {q: apply_graph(graph, point, q, directions[q.direction]) for q in quantities}
    del graph
    residuals = run(partition.primal, point.inputs)
    validator.num_verified += 1
    for quantity in quantities:
        with units(entry.options.precision):
            arguments = [*residuals, directions[quantity.direction]]
            ours = run(partition.tangents[quantity.name], arguments)
        if not agree(ours, [theirs.pop(quantity)], validator.eps):
            entry.invalidate("a product is not that of double backward")
            return None
    return residuals


def _trace(
    point: Point,
    entry: CachedProgram,
    directions: dict[Vectors, Tensor],
    outputs: list[Tensor],
    product: list[float],
) -> TracedProduct | None:
    """Trace the product here and install the programs; None if that does not work.

    They must repeat the outputs and the product of a graph: under observation torch may take
    another formula.
    """
    options, validator = entry.options, entry.validator
    validator.num_traces += 1
    try:
        new = trace_product(point, directions, options)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if isinstance(error, HesseError) and options.mode != "auto":
            raise
        entry.disable(first_line(error))
        return None
    if not same_fingerprint(product, fingerprint(new.result), rounding([new.result], new.eps)):
        quantity = point.definition.quantities[0]
        again = fingerprint(GraphProduct(point, entry).product(directions[quantity.direction]))
        check_same(torch.tensor(product), torch.tensor(again))
        entry.disable("torch computes another product while it traces")
        return None
    if not agree(outputs, new.outputs, new.eps):
        for one, two in zip(new.outputs, point.evaluate(), strict=True):
            check_same(one, two)
    if new.needs_check:  # outside of the trace, which must not see it
        point.definition.linearise(point.function, point.variables.x).check()
    entry.install(new.partition, len(new.outputs))
    validator.install(new.eps, new.output_eps, new.output_error)
    if options.precision != "highest":
        found = "no units for it here; full precision"
        if new.error is not None:
            found = f"relative error of a product {new.error:.1e}, measured"
        entry.notes.append(f"precision={options.precision!r}: {found}")
    return new


def _directions(point: Point, given: dict[Vectors, Tensor], seed: int) -> dict[Vectors, Tensor]:
    """A direction for every quantity of the definition: random ones where none are given."""
    needed: dict[Vectors, None] = dict.fromkeys(q.direction for q in point.definition.quantities)
    random = {name: point.random(name, seed) for name in needed if name not in given}
    return {name: given[name] if name in given else random[name] for name in needed}
