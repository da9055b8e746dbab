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
    entry.usage.compile_after = math.inf
    entry.failures["compiling"] = "was tried"  # and is not again, if products are traced again
    program = entry.partition.tangents["product"]
    entry.compiled = compiled_if_faster(entry, program, tensors, "a product")
    if entry.compiled is not None:
        del entry.failures["compiling"]


def compiled_if_faster(
    entry: CachedProgram, program: Program, tensors: list[Tensor], what: str
) -> Callable[..., list[Tensor]] | None:
    """A program of an entry compiled, if it is then right and, under "auto", faster.

    The entry notes how that went; `what` the program computes is for that note.

    Raises:
        DerivativeError: compiled programs were asked for, and cannot be had.
    """
    forced = entry.options.mode == "compiled-split"
    try:
        if not can_compile(tensors[0].device):
            raise RuntimeError("there is no C++ compiler on this machine")
        compiled = compile_program(program, tensors)
        if not _same(run(compiled, tensors), run(program, tensors), entry.validator.eps):
            raise RuntimeError("the compiled program gives other results")
    except Exception as error:
        reason = first_line(error)
        entry.notes.append(f"compiled-split: {reason}")
        if forced:
            raise mode_refused(entry, reason) from error
        return None
    ours, theirs = _seconds(compiled, tensors), _seconds(program, tensors)
    entry.notes.append(f"compiled, {what} takes {ours / theirs:.2f} of the time it took before")
    return compiled if ours < theirs or forced else None


def _same(ours: list[Tensor], theirs: list[Tensor], eps: float) -> bool:
    """Whether real results agree, and those of other dtypes are equal."""
    pairs = list(zip(ours, theirs, strict=True))
    exact = [(a, b) for a, b in pairs if not b.dtype.is_floating_point]
    close = [(a, b) for a, b in pairs if b.dtype.is_floating_point]
    return all(torch.equal(a, b) for a, b in exact) and all(agree([a], [b], eps) for a, b in close)


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


# Why a program is thrown away whose function has changed in Python.
VALUE_DIFFERS = "the value of f is not that of the program"


def remedy_for(reason: str, otherwise: str) -> str:
    """What to do about an f whose programs are refused for this reason.

    >>> remedy_for("it draws random numbers", "Use mode='auto'.")
    "Use mode='auto'."
    """
    if VALUE_DIFFERS not in reason:
        return otherwise
    return (
        "A number of Python is a constant of the trace. If f reads one that changes from point to "
        f"point, hold it in a tensor, and write to that with tensor.copy_(new). {otherwise}"
    )


def mode_refused(entry: CachedProgram, reason: str) -> DerivativeError:
    """The error where a mode was asked for by name and cannot be had."""
    return DerivativeError(
        expected=f"an f whose products can be taken in mode {entry.options.mode!r}",
        got=reason,
        remedy=remedy_for(
            reason, "Use mode='auto', which takes another way where this one does not work."
        ),
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
