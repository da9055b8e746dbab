# SPDX-License-Identifier: Apache-2.0
"""Turn a tangent program of one direction into a program of a block of directions.

One operation on a block of k small tensors takes little longer than on one of them. On large
tensors nothing is gained, and memory is lost: how many directions go together depends on how many
bytes a node of the program writes.

The only file that sets this switch of functorch, which is private to torch; tried on torch 2.13 and
2.15. A torch without that setting warns on stderr where vmap has no rule for an operation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hesse.tracing.functionalize import trace
from hesse.tracing.passes.batched_matmul import merge_batched_matmuls
from hesse.tracing.passes.fuse_addmm import fuse_addmm
from hesse.tracing.passes.shape_alone import without_entries
from hesse.tracing.passes.simplify import simplify
from hesse.tracing.program import Program

# What a node writes for all directions should fit into the cache of a core, with what it reads.
# Meanwhile products with one matrix become a larger product, which runs faster.
CACHED_BYTES = 400_000
_MAX_DIRECTIONS = 32


def directions_at_once(program: Program, nbytes: int = CACHED_BYTES) -> int:
    """How many directions to put into a block, of which a node writes so many bytes."""
    return int(min(_MAX_DIRECTIONS, max(1.0, nbytes / max(1.0, program.bytes_per_node))))


def batched(program: Program, residuals: list[Tensor], *blocks: Tensor) -> Program:
    """The program of k directions, which are in the first dimension of all that a direction is.

    `torch.vmap` says what every operation does to a block. It is traced once, so that the program
    runs without the overhead of vmap. Where vmap has no rule for an operation, it runs that for one
    direction after the other, and the block is not faster: whoever asks for it must time it.

    Args:
        program: its inputs are residuals, then one direction, of one tensor or several.
        residuals, blocks: the tensors to trace it with.
    """
    in_dims = (*[None] * len(residuals), *[0] * len(blocks))
    with _without_fallback_warning():
        graph = trace(
            lambda: torch.vmap(program.replay, in_dims=in_dims)(*residuals, *blocks),
            [*residuals, *blocks],
        )
    graph = without_entries(merge_batched_matmuls(simplify(graph)))
    nodes = fuse_addmm(graph.nodes, graph.outputs, graph.metas)
    return Program(
        *(graph, nodes, graph.inputs, graph.outputs), measured_kernels=program.measured_kernels
    )


@contextmanager
def _without_fallback_warning() -> Iterator[None]:
    """Within it, vmap does not warn on stderr of operations that it has no rule for."""
    functorch: Any = getattr(torch._C, "_functorch", None)
    switch = getattr(functorch, "_set_vmap_fallback_warning_enabled", lambda _: None)
    switch(False)
    try:
        yield
    finally:
        switch(True)
