# SPDX-License-Identifier: Apache-2.0
"""Many directions at once: a direction program that takes a block of them.

One operation on a block of k small tensors takes little longer than on one of them. On large
tensors nothing is gained, and memory is lost: how many directions go together depends on what an
operation of the program writes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hesse.tracing.functionalize import record
from hesse.tracing.passes.accumulate import accumulate
from hesse.tracing.passes.batched_matmul import multiply_at_once
from hesse.tracing.passes.simplify import simplify
from hesse.tracing.program import Program

# What an operation writes for all directions had better stay in the cache of a core, with what it
# reads. Products with one matrix become a larger one meanwhile, which is computed faster.
_CACHED = 400_000
_MOST = 32


def directions_at_once(program: Program) -> int:
    """How many directions to take together."""
    return int(min(_MOST, max(1.0, _CACHED / max(1.0, program.bytes_per_op))))


def batched(program: Program, residuals: list[Tensor], block: Tensor) -> Program:
    """The program for a block of directions, shape (k, n), in the place of a single one.

    `torch.vmap` says what every operation does to a block. It says so to a tape, once: the
    recording runs without the cost of vmap. Where it says one direction at a time, and that on
    stderr, whoever asked sees that nothing is gained.
    """
    in_dims = (*[None] * len(residuals), 0)
    functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    functorch._set_vmap_fallback_warning_enabled(False)
    try:
        trace = record(
            lambda: torch.vmap(program.replay, in_dims=in_dims)(*residuals, block),
            [*residuals, block],
        )
    finally:
        functorch._set_vmap_fallback_warning_enabled(True)
    trace = multiply_at_once(simplify(trace))
    ops = accumulate(trace.ops, trace.outputs, trace.metas)
    return Program(trace, ops, trace.inputs, trace.outputs)
