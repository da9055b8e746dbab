# SPDX-License-Identifier: Apache-2.0
"""Many vectors times one matrix are one matrix product, which reads the matrix once.

A block of directions leaves a batch of products instead, in which the matrix is repeated.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from hesse.tracing.graph import Op, Ref, Trace
from hesse.tracing.memory.liveness import made_by
from hesse.tracing.passes.builder import Builder, new_numbers
from hesse.tracing.program import live

_aten = torch.ops.aten


def multiply_at_once(trace: Trace) -> Trace:
    """The same computation; adds to the metas."""
    maker = {number: op for op in trace.ops for number in made_by(op)}
    numbers, ops = new_numbers(trace.metas), []
    for op in trace.ops:
        (result, *_) = op.results
        if op.function is not _aten.bmm.default or result is None:
            ops.append(op)
            continue
        builder = Builder(trace.metas, numbers)
        ops += builder.instead_of(op) if _folded(op, trace, maker, builder) else [op]
    return replace(trace, ops=live(ops, trace.outputs))


def _folded(op: Op, trace: Trace, maker: dict[int, Op], builder: Builder) -> bool:
    """Whether a batch of products was written as a single one."""
    left, right = op.args
    if trace.metas[left.index].shape[1] == 1 and (matrix := _repeated(right, trace, maker)):
        rows = builder.call(_aten.select.int, left, 1, 0)
        product = builder.call(_aten.mm.default, Ref(rows), matrix)
        builder.call(_aten.unsqueeze.default, Ref(product), 1)
        return True
    if trace.metas[right.index].shape[2] == 1 and (matrix := _repeated(left, trace, maker)):
        rows = builder.call(_aten.select.int, right, 2, 0)
        transposed = builder.call(_aten.t.default, matrix)
        product = builder.call(_aten.mm.default, Ref(rows), Ref(transposed))
        builder.call(_aten.unsqueeze.default, Ref(product), 2)
        return True
    return False


def _repeated(batch: Ref, trace: Trace, maker: dict[int, Op]) -> Ref | None:
    """The matrix that a batch repeats, if it does."""
    op = maker.get(batch.index)
    if op is None or op.function is not _aten.expand.default:
        return None
    (matrix,) = op.reads()
    return Ref(matrix) if len(trace.metas[matrix].shape) == 2 else None
