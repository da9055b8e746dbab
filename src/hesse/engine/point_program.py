# SPDX-License-Identifier: Apache-2.0
"""`PointProgram`: tensors that belong to a point and to no direction, by one program.

It computes the outputs of f as well, by which it is checked: no product is taken, no residual kept.
"""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import torch
from torch import Tensor

from hesse.engine.compiler import compiled_if_faster
from hesse.engine.point import Point
from hesse.engine.program_cache import CachedProgram
from hesse.errors import HesseError
from hesse.tracing.program import Program, run


class Evaluation(NamedTuple):
    """A summand at a point, with the programs for it and its outputs; weight decay has neither."""

    point: Point
    entry: CachedProgram | None
    outputs: list[Tensor]


class PointProgram:
    """inputs of f -> tensors.

    Args:
        program: inputs -> the outputs of f, and the tensors.
        entry: the programs that it was composed of. It serves as long as these do.
    """

    def __init__(self, program: Program, entry: CachedProgram) -> None:
        self._program, self._entry, self._partition = program, entry, entry.partition
        self._function = program
        self._seconds, self._compile_after = 0.0, entry.compile_after(program)

    @property
    def makes_results(self) -> bool:
        """Whether the tensors share no memory with anything."""
        return self._program.makes_outputs

    def run(self, at: Evaluation, *, verified: bool) -> list[Tensor] | None:
        """The tensors; None where the program may be wrong.

        Args:
            at: the point.
            verified: whether the programs have been found right there. Otherwise they are not
                trusted where a product must be compared.
        """
        if at.entry is not self._entry or self._entry.partition is not self._partition:
            return None
        start, inputs = time.perf_counter(), at.point.inputs
        if self._seconds >= self._compile_after:
            self._compile(inputs)
        try:
            results = run(self._function, inputs)
        except (HesseError, torch.OutOfMemoryError):
            raise
        except Exception:  # a guard, for one: a product takes another way
            if verified:
                raise
            return None
        self._seconds += time.perf_counter() - start
        n = self._entry.num_outputs
        is_right = self._entry.validator.accepts(results[:n], at.outputs, verified=verified)
        return results[n:] if is_right else None

    def _compile(self, inputs: list[Tensor]) -> None:
        self._compile_after = math.inf  # one try
        compiled = compiled_if_faster(self._entry, self._program, inputs, "an evaluation")
        self._function = compiled or self._program
