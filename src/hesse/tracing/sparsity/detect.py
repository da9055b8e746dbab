# SPDX-License-Identifier: Apache-2.0
"""Detect the pattern of a matrix from the program of its products.

A tangent program is linear in the direction v: its Jacobian with respect to v is the matrix.
Starting from the identity, the pattern of v itself, each node gives the patterns of its results
(`rules`). The numbers in the tensors do not matter, except for indices, and for matrices, kernels
and factors that do not depend on the variables: these are the *operands* of a detection. Where they
are the same at another point, so is the pattern.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.tracing.graph import (
    Graph,
    Node,
    UntraceableError,
    dependent_values,
    eliminate_dead_code,
    last_reads,
)
from hesse.tracing.program import Program, run
from hesse.tracing.sparsity.patterns import Pattern, TooDenseError, empty, identity
from hesse.tracing.sparsity.rules import RULES
from hesse.tracing.sparsity.tape import Tape, is_integer
from hesse.tracing.sparsity.zeros import Zeros


class UnknownOperationError(UntraceableError):
    """There is no rule for an operation."""


@dataclass(frozen=True)
class Detection:
    """A pattern, and the operands that it holds for.

    Args:
        pattern: the pattern of the result, shape (m, n).
        operands: a program from the residuals to the operands.
        values: those of the operands at the point of the detection.
        constants: the constants of the program whose entries were looked at, and copies of them.
        is_local: whether an operand depends on the variables, so that the pattern may change.
    """

    pattern: Pattern
    operands: Program
    values: list[Tensor]
    constants: list[tuple[Tensor, Tensor]]
    is_local: bool

    def holds_for(self, residuals: list[Tensor]) -> bool:
        """Whether the operands are the same for these residuals."""
        return self.holds_with(run(self.operands, residuals) if self.values else [])

    def holds_with(self, values: list[Tensor]) -> bool:
        """Whether these are the operands that the pattern is that of."""
        unwritten = all(torch.equal(now, then) for now, then in self.constants)
        return unwritten and all(map(torch.equal, values, self.values))


@dataclass(frozen=True)
class LinearPart:
    """What of a tangent program depends on the direction, and what does not.

    Args:
        nodes: those that depend on it, in order.
        fixed: the others.
        direction, output: the numbers of the direction and of the result.
        known: constants, and what is known of other values that do not depend on the direction:
            integers, and what does not depend on the variables either.
        changing: the values that depend on the variables.
    """

    nodes: list[Node]
    fixed: list[Node]
    direction: int
    output: int
    known: dict[int, Tensor]
    changing: Collection[int]

    @staticmethod
    def of(
        program: Program, residuals: list[Tensor], primal: Program, num_variables: int
    ) -> LinearPart:
        """That of a tangent program; the arguments are those of `detect`."""
        (output,), direction = program.outputs, program.inputs[-1]
        dependent = dependent_values(program.nodes, {direction})
        nodes = [node for node in program.nodes if not dependent.isdisjoint(node.results)]
        nodes = eliminate_dead_code(nodes, [output])
        read = {number for node in nodes for number in node.reads()}
        fixed = [node for node in program.nodes if dependent.isdisjoint(node.results)]
        changing = dependent_values(primal.nodes, primal.inputs[:num_variables])
        changing = dependent_values(fixed, changing)
        wanted = [
            number
            for number in sorted(read - dependent - program.constants.keys())
            if is_integer(program.metas[number]) or number not in changing
        ]
        values = run(_operand_program(program, fixed, wanted), residuals) if wanted else []
        known = program.constants | dict(zip(wanted, values, strict=True))
        return LinearPart(nodes, fixed, direction, output, known, changing)


def detect(
    program: Program, residuals: list[Tensor], primal: Program, num_variables: int
) -> Detection:
    """The pattern of a tangent program, whose last input is the direction.

    Args:
        program: [*residuals, direction] -> one flat result.
        residuals: at the point.
        primal: the program of the residuals, whose first inputs are the variables.
        num_variables: how many these are.

    Raises:
        UnknownOperationError: an operation has no rule; the message names it.
        TooDenseError: a tensor depends on too much of the direction.
    """
    part = LinearPart.of(program, residuals, primal, num_variables)
    (n,) = program.metas[part.direction].shape
    zeros = Zeros(program.metas, primal.constants | program.constants)
    zeros.visit([*primal.nodes, *part.fixed])
    tape = Tape(program.metas, part.known, zeros.nonzeros, {part.direction: identity(n)})
    pattern = _propagate(part.nodes, part.output, tape)
    if pattern is None:
        pattern = empty(program.metas[part.output].shape[0], n)
    used = sorted(tape.looked_at - program.constants.keys())
    operands = _operand_program(program, part.fixed, used)
    constants = primal.constants | program.constants
    seen = (tape.looked_at | zeros.looked_at) & constants.keys()
    return Detection(
        pattern,
        operands,
        [part.known[number].clone() for number in used],
        [(constants[number], constants[number].clone()) for number in seen],
        not set(part.changing).isdisjoint(used),
    )


def _propagate(nodes: list[Node], output: int, tape: Tape) -> Pattern | None:
    """The pattern of the output; None if it does not depend on the direction."""
    dying = last_reads(nodes, {output})
    for position, node in enumerate(nodes):
        for number, pattern in zip(node.results, _rule_of(node, tape), strict=True):
            if number is not None and pattern is not None:
                tape.patterns[number] = pattern
        for number in dying.get(position, ()):
            tape.patterns.pop(number, None)
    return tape.patterns.get(output)


def _rule_of(node: Node, tape: Tape) -> Collection[Pattern | None]:
    if not tape.moving(node):  # of zeros, such as those that autograd writes a slice to
        return [None] * len(node.results)
    name = str(node.function)
    try:
        for rule in RULES:
            patterns = rule(node, tape)
            if patterns is not None:
                return patterns
    except TooDenseError as error:
        raise TooDenseError(f"{name} {error}") from None
    except (NotImplementedError, RuntimeError, ValueError) as error:
        raise UnknownOperationError(f"{name}, used in a form that has no rule ({error})") from error
    raise UnknownOperationError(f"{name}, which has no rule")


def _operand_program(program: Program, fixed: list[Node], wanted: list[int]) -> Program:
    """Those of the fixed nodes that give the wanted values from the residuals."""
    graph = Graph(fixed, program.inputs[:-1], wanted, program.constants, program.metas)
    return Program(graph, eliminate_dead_code(fixed, wanted), graph.inputs, wanted)
