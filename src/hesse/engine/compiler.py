# SPDX-License-Identifier: Apache-2.0
"""A tangent program compiled, or for many directions at once: made, compared, kept if faster."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from hesse.engine.closeness import agree
from hesse.engine.program_cache import CachedProgram
from hesse.errors import DerivativeError, first_line
from hesse.tracing.backends.inductor import can_compile, compile_program
from hesse.tracing.graph import UntraceableError
from hesse.tracing.program import Program, run
from hesse.tracing.vmap import batched, directions_at_once

# Directions are taken together if that takes at most this fraction of the time one by one.
_SAVES = 0.95


def compile_product(entry: CachedProgram, tensors: list[Tensor]) -> None:
    """Compile the program of the product; keep it if it is right and, under "auto", faster.

    Raises:
        DerivativeError: compiled programs were asked for, and cannot be had.
    """
    assert entry.partition is not None
    entry.usage.compile_after = math.inf  # one try
    program, forced = entry.partition.tangents["product"], entry.options.mode == "compiled-split"
    try:
        if not can_compile(tensors[0].device):
            raise RuntimeError("there is no C++ compiler on this machine")
        compiled = compile_program(program, tensors)
        if not agree(run(compiled, tensors), run(program, tensors), entry.validator.eps):
            raise RuntimeError("the compiled program gives another product")
    except Exception as error:
        reason = first_line(error)
        entry.failures["compiling"] = reason
        entry.notes.append(f"compiled-split: {reason}")
        if forced:
            raise mode_refused(entry, reason) from error
        return
    ours, theirs = _seconds(compiled, tensors), _seconds(program, tensors)
    note = f"compiled, a product takes {ours / theirs:.2f} of the time it took before"
    entry.notes.append(note)
    if ours < theirs or forced:
        entry.compiled = compiled
    else:
        entry.failures["compiling"] = note


def block_size(entry: CachedProgram) -> int:
    """How many directions had better be taken together."""
    if entry.partition is None:
        return 1
    return directions_at_once(entry.partition.tangents["product"])


def block_program(entry: CachedProgram, residuals: list[Tensor], block: Tensor) -> Program | None:
    """The program of the product for k directions; None where it does not work or pay."""
    k = len(block)
    failure = f"a block of {k}"
    if failure in entry.failures:
        return None
    if k not in entry.blocks:
        try:
            entry.blocks[k] = _trace_block(entry, residuals, block)
        except Exception as error:
            entry.failures[failure] = first_line(error)
            entry.notes.append(f"{failure}: {entry.failures[failure]}")
            return None
    return entry.blocks[k]


def _trace_block(entry: CachedProgram, residuals: list[Tensor], block: Tensor) -> Program:
    assert entry.partition is not None
    single = entry.partition.tangents["product"]
    with torch.no_grad():
        program = batched(single, residuals, block)
    k = len(block)
    mix = torch.linspace(1.0, 2.0, k, dtype=block.dtype, device=block.device)
    alone, together = [*residuals, mix @ block], [*residuals, block]
    ours = [mix @ part for part in run(program, together)]
    if not agree(ours, run(single, alone), entry.validator.eps):
        raise UntraceableError("a block gives other products than its directions alone")
    if entry.options.cost_model.measures:
        fastest = single if entry.compiled is None else entry.compiled
        pairs = [(_seconds(program, together, 1), _seconds(fastest, alone, 1)) for _ in range(3)]
        at_once, one_by_one = map(min, zip(*pairs, strict=True))
        if at_once > _SAVES * k * one_by_one:
            raise UntraceableError(f"{k} directions together take as long as one by one")
    return program


def mode_refused(entry: CachedProgram, reason: str) -> DerivativeError:
    """The error where a mode was asked for by name and cannot be had."""
    return DerivativeError(
        expected=f"an f whose products can be taken in mode {entry.options.mode!r}",
        got=reason,
        remedy="Use mode='auto', which takes another way where this one does not work.",
    )


def _seconds(program: Callable[..., list[Tensor]], tensors: list[Tensor], runs: int = 3) -> float:
    """The least of some runs."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run(program, tensors)
        if tensors[0].is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)
