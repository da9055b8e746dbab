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
from functools import cached_property

import torch
from torch import Tensor

from hesse.tracing.graph import Op, Trace
from hesse.tracing.memory.liveness import Lifetimes, is_view, made_by
from hesse.tracing.memory.rematerialise import (
    Cheap,
    choose_residuals,
    is_light,
    is_memory_bound,
    lower_peak,
)
from hesse.tracing.memory.schedule import on_demand, put_off
from hesse.tracing.passes.accumulate import accumulate
from hesse.tracing.precision import with_bfloat16
from hesse.tracing.program import Program, live

# A split of fewer bytes than this is not worth saving memory in.
_SMALL = 1 << 25

# In units of what the gradient takes: two, less some room for the vectors around a product.
_GOAL = 1.8

# Who computes again to save less than this wastes time.
_NEXT_TO_NOTHING = 1.05


@dataclass(frozen=True)
class Split:
    """The programs of a product.

    `point` gives the residuals alone, `point_and_gradient` in front of them the value and the
    gradient; `directions` has one program for every quantity that is linear or quadratic in v.
    """

    point: Program
    point_and_gradient: Program
    directions: dict[str, Program]
    residual_bytes: int
    """Of the residuals that are no inputs, constants, or views of one another."""

    @cached_property
    def constants(self) -> list[Tensor]:
        """The tensors of others that the programs read."""
        programs = [self.point, self.point_and_gradient, *self.directions.values()]
        return list({id(t): t for program in programs for t in program.constants.values()}.values())

    @property
    def bytes(self) -> int:
        """What residuals and a product take at their peak."""
        return self.residual_bytes + self.directions["product"].peak_bytes()


def split(
    trace: Trace,
    directions: Sequence[int],
    point: Sequence[int],
    products: dict[str, list[int]],
    *,
    bfloat16: bool = False,
    thrifty: bool = False,
) -> Split:
    """The split of a trace, in at most twice the memory of the gradient if that costs little.

    Args:
        trace: simplified; `directions` are its inputs that belong to v, `point` those of its
            outputs that do not depend on v: the value, then the gradient; `products` the others,
            by name; `bfloat16`: use it for the products in them; `thrifty`: save memory
            where it costs time too.
    """
    if bfloat16:
        trace = with_bfloat16(trace, _dependent(trace.ops, set(directions)))
    halves = _Halves(trace, list(directions), list(point), products)
    goal = max(_SMALL, int(_GOAL * halves.program_at_point(point).peak_bytes()))
    plain = halves.split(None, goal)
    if thrifty:
        others = (halves.split(cheap, 0) for cheap in (is_light, is_memory_bound))
    else:
        others = (halves.split(cheap, goal) for cheap in (is_light,) if plain.bytes > goal)
    splits = [plain, *others]
    enough = _NEXT_TO_NOTHING * min(split.bytes for split in splits)
    return next(split for split in splits if split.bytes <= enough)


class _Halves:
    """The operations of a trace that depend on the direction, and the others."""

    def __init__(
        self, trace: Trace, directions: list[int], point: list[int], products: dict[str, list[int]]
    ) -> None:
        self._trace, self._directions, self._point = trace, directions, point
        self._products = products
        linear = _dependent(trace.ops, set(directions))
        self._asked = [number for outputs in products.values() for number in outputs]
        self._moving = live([op for op in trace.ops if _any_in(op.results, linear)], self._asked)
        self._still = [op for op in trace.ops if not _any_in(op.results, linear)]
        self._inputs = [number for number in trace.inputs if number not in set(directions)]

    def split(self, cheap: Cheap | None, goal: int) -> Split:
        """The split that computes again what is cheap."""
        moving = self._moving
        if cheap is not None:
            wanted = self._residuals(moving)
            kept = choose_residuals(self._trace, self._still, wanted, cheap)
            moving = on_demand(self._still, moving, set(kept))
        residuals = self._residuals(moving)
        size = _own_bytes(self._trace, self._still, residuals)
        return Split(
            point=self.program_at_point(residuals),
            point_and_gradient=self.program_at_point([*self._point, *residuals]),
            directions={
                name: self._program(moving, residuals, outputs, cheap, goal - size)
                for name, outputs in self._products.items()
            },
            residual_bytes=size,
        )

    def program_at_point(self, outputs: Sequence[int]) -> Program:
        """The program of what does not depend on the direction."""
        return Program(self._trace, live(self._still, outputs), self._inputs, outputs)

    def _residuals(self, moving: list[Op]) -> list[int]:
        made = {number for op in moving for number in op.results} | set(self._directions)
        reads = {number for op in moving for number in op.reads()} | set(self._asked)
        return sorted(reads - made - set(self._trace.constants))

    def _program(
        self,
        moving: list[Op],
        residuals: list[int],
        outputs: list[int],
        cheap: Cheap | None,
        goal: int,
    ) -> Program:
        trace, inputs = self._trace, [*residuals, *self._directions]
        held = {*inputs, *trace.constants}
        ops, join = _without_join(live(moving, outputs), outputs)
        parts = [n for op in join for n in op.reads()] or outputs  # made as soon as they can be
        ops = put_off(ops, trace.metas, held, parts, cheap or (lambda op: is_view(op.function)))
        ops = accumulate(ops, parts, trace.metas)
        if cheap is not None:
            ops = lower_peak(ops, trace.metas, held, parts, goal, cheap)
        return Program(trace, [*ops, *join], inputs, outputs)


def _without_join(ops: list[Op], outputs: list[int]) -> tuple[list[Op], list[Op]]:
    """The operations but for the concatenation that makes the one output; that, if there is one."""
    joined = (
        ops and ops[-1].function is torch.ops.aten.cat.default and [*ops[-1].results] == outputs
    )
    return (ops[:-1], ops[-1:]) if joined else (ops, [])


def _dependent(ops: list[Op], sources: set[int]) -> set[int]:
    """The numbers of `sources` and of all that is computed from them."""
    found = set(sources)
    for op in ops:
        if _any_in(op.reads(), found):
            found.update(made_by(op))
    return found


def _any_in(numbers, found: set[int]) -> bool:
    return any(number in found for number in numbers)


def _own_bytes(trace: Trace, ops: list[Op], residuals: list[int]) -> int:
    """The bytes of the tensors behind `residuals`."""
    lifetimes = Lifetimes(ops, residuals)
    own = {lifetimes.root(number) for number in residuals} - set(trace.inputs)
    return sum(trace.metas[number].nbytes for number in own - set(trace.constants))
