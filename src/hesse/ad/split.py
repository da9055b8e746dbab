# SPDX-License-Identifier: Apache-2.0
"""A product that is linear in v, split into what depends on v and what does not.

    point program        (x, data)      -> value, gradient, residuals
    direction program    (residuals, v) -> product

The residuals are the tensors that the direction program reads and the point program computes. The
point program runs once at a point, the direction program once a product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hesse.ad.fuse import accumulate
from hesse.ad.program import Program, is_view, live
from hesse.ad.tape import Op, Trace


@dataclass(frozen=True)
class Split:
    """The programs of a product.

    `point` gives the residuals alone, `point_and_gradient` in front of them the value and the
    gradient; `directions` has one program for every quantity that is linear or quadratic in v.
    """

    point: Program
    point_and_gradient: Program
    directions: dict[str, Program]
    n_residuals: int
    residual_bytes: int
    """Of the residuals that are no inputs, constants, or views of one another."""


def split(
    trace: Trace, directions: Sequence[int], point: Sequence[int], products: dict[str, list[int]]
) -> Split:
    """The split of a trace.

    Args:
        trace: simplified; `directions` are its inputs that belong to v, `point` those of its
            outputs that do not depend on v, `products` the others, by name.
    """
    linear = _dependent(trace.ops, set(directions))
    asked = [number for outputs in products.values() for number in outputs]
    moving = live([op for op in trace.ops if _any_in(op.results, linear)], asked)
    still = [op for op in trace.ops if not _any_in(op.results, linear)]
    made = {number for op in moving for number in op.results} | set(directions)
    reads = {number for op in moving for number in op.reads()} | set(asked)
    residuals = sorted(reads - made - set(trace.constants))
    inputs = [number for number in trace.inputs if number not in set(directions)]
    programs = {}
    for name, outputs in products.items():
        ops = accumulate(live(moving, outputs), outputs, trace.metas)
        programs[name] = Program(trace, ops, [*residuals, *directions], outputs)

    def still_program(outputs: list[int]) -> Program:
        return Program(trace, live(still, outputs), inputs, outputs)

    return Split(
        point=still_program(residuals),
        point_and_gradient=still_program([*point, *residuals]),
        directions=programs,
        n_residuals=len(residuals),
        residual_bytes=_own_bytes(trace, still, residuals),
    )


def _dependent(ops: list[Op], sources: set[int]) -> set[int]:
    """The numbers of `sources` and of all that is computed from them."""
    found = set(sources)
    for op in ops:
        if _any_in(op.reads(), found):
            found.update(number for number in op.results if number is not None)
    return found


def _any_in(numbers, found: set[int]) -> bool:
    return any(number in found for number in numbers)


def _own_bytes(trace: Trace, ops: list[Op], residuals: list[int]) -> int:
    """The bytes of the tensors behind `residuals`."""
    root: dict[int, int] = {}
    for op in ops:
        if is_view(op.function):
            base = next(op.reads())
            root.update((n, root.get(base, base)) for n in op.results if n is not None)
    own = {root.get(number, number) for number in residuals} - set(trace.inputs)
    return sum(trace.metas[number].nbytes for number in own - set(trace.constants))
