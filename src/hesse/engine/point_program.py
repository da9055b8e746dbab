# SPDX-License-Identifier: Apache-2.0
"""`PointProgram`: tensors that belong to a point and to no direction, by one program.

It computes the outputs of f as well, by which it is checked: no product is taken, no residual kept.
Where it is known that f is what it was, by what it reads, neither f nor its outputs are computed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hesse.ad.composing import Composing
from hesse.ad.reads import Reads
from hesse.engine.compiler import compiled_if_faster
from hesse.engine.data_version import versions
from hesse.engine.point import Point
from hesse.engine.program_cache import CachedProgram
from hesse.errors import HesseError
from hesse.surroundings import is_watched
from hesse.tracing.program import Program, run


class Evaluation(NamedTuple):
    """A summand at a point, with the programs for it, of which weight decay has none."""

    point: Point
    entry: CachedProgram | None
    outputs: Callable[[], list[Tensor]]
    """Those of f itself, computed when they are asked for."""


class PointProgram:
    """inputs of f -> tensors.

    Args:
        checked: inputs -> the outputs of f, and the tensors.
        alone: inputs -> the tensors.
        entry: the programs that these were composed of. They serve as long as those do.
        same: whether f is what it was.
    """

    def __init__(
        self, checked: Program, alone: Program, entry: CachedProgram, same: SameFunction
    ) -> None:
        self._entry, self._partition = entry, entry.partition
        self._checked, self._alone = _Timed(checked, entry), _Timed(alone, entry)
        self._same = same

    @property
    def makes_results(self) -> bool:
        """Whether the tensors share no memory with anything."""
        return self._checked.program.makes_outputs and self._alone.program.makes_outputs

    def run(self, at: Evaluation, *, verified: bool) -> list[Tensor] | None:
        """The tensors; None where the program may be wrong.

        Args:
            at: the point.
            verified: whether the programs have been found right there. Otherwise they are not
                trusted where a product must be compared.
        """
        if at.entry is not self._entry or self._entry.partition is not self._partition:
            return None
        is_same, validator = self._same.is_certain, self._entry.validator
        n, before = self._entry.num_outputs, self._same.versions
        if is_same and not (verified or validator.passes_by()):
            return None
        try:
            results = (self._alone if is_same else self._checked).run(at.point.inputs)
        except (HesseError, torch.OutOfMemoryError):
            raise
        except Exception:  # a guard, for one: products take another way
            return None
        if is_same:
            return results
        if not validator.accepts(results[:n], at.outputs(), verified=verified):
            return None
        self._same.found_right(before)
        return results[n:]


class SameFunction:
    """Whether f is what it was, found out without a call.

    A change in Python ends that for good: f may read other things now, and numbers that are the
    same by chance at one point. A write to a tensor does not, since programs read it at every run;
    it lasts until f has been found to agree.

    Args:
        f: a function that has just been traced.
        program: of it. If it has guards, Python has read entries of x, and f is called every time.
    """

    def __init__(self, f: object, program: Program) -> None:
        f = f.function if isinstance(f, Composing) else f
        is_free = all(node.guard is None for node in program.nodes)
        self._reads = Reads.of(f) if is_free else None
        self._versions = self.versions

    @property
    def versions(self) -> object:
        """Of the tensors that f reads."""
        return None if self._reads is None else versions(self._reads.tensors)

    @property
    def is_certain(self) -> bool:
        """Whether f is the same."""
        if self._reads is None or is_watched():
            return False
        if not self._reads.are_as_found:
            self._reads = None
            return False
        return self.versions == self._versions

    def found_right(self, versions: object) -> None:
        """Its outputs were those of the program, of tensors of these versions."""
        self._versions = versions


class _Timed:
    """A program that is compiled when its runs have taken as long as that pays for."""

    def __init__(self, program: Program, entry: CachedProgram) -> None:
        self.program, self._entry = program, entry
        self._function: Callable[..., list[Tensor]] = program
        self._seconds, self._compile_after = 0.0, entry.compile_after(program)

    def run(self, inputs: list[Tensor]) -> list[Tensor]:
        """Its outputs."""
        start = time.perf_counter()
        if self._seconds >= self._compile_after:
            self._compile_after = math.inf  # one try
            what = "an evaluation"
            compiled = compiled_if_faster(self._entry, self.program, inputs, what)
            self._function = compiled or self.program
        results = run(self._function, inputs)
        self._seconds += time.perf_counter() - start
        return results
