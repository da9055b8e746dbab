# SPDX-License-Identifier: Apache-2.0
"""Fewer, larger operations: a sum of matrix products is accumulated by the products themselves."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import torch

from hesse.programs.tape import Meta, Op, Ref

_aten = torch.ops.aten

# X + A B in one operation, for matrices and for batches of them.
_ACCUMULATING = {
    _aten.mm.default: _aten.addmm.default,
    _aten.bmm.default: _aten.baddbmm.default,
}


def accumulate(ops: list[Op], outputs: list[int], metas: dict[int, Meta]) -> list[Op]:
    """The same operations with X + A B as one wherever A B is used for nothing else.

    The sum is rounded once less than before.
    """
    uses: Counter[int | None] = Counter(number for op in ops for number in op.reads())
    uses.update(outputs)
    made = {n: op for op in ops if op.function in _ACCUMULATING for n in op.results}
    gone: set[int] = set()
    result = []
    for op in ops:
        fused = _fused(op, made, uses, metas) if op.function is _aten.add.Tensor else None
        if fused is None:
            result.append(op)
            continue
        position, addend = fused
        product = op.args[position].index
        gone.add(product)
        source = made[product]
        result.append(
            replace(op, function=_ACCUMULATING[source.function], args=(addend, *source.args))
        )
    return [op for op in result if not gone.intersection(op.results)]


def _fused(
    op: Op, made: dict[int | None, Op], uses: Counter[int | None], metas: dict[int, Meta]
) -> tuple[int, Any] | None:
    """Which argument of a sum is a product to be accumulated, and the other argument."""
    if op.kwargs or len(op.args) != 2 or not all(isinstance(a, Ref) for a in op.args):
        return None
    (total,) = (metas[number] for number in op.results if number is not None)
    left, right = metas[op.args[0].index], metas[op.args[1].index]
    if left.shape != right.shape or left.dtype != right.dtype or not total.is_contiguous:
        return None  # what comes next may rely on the strides of the sum
    for position in (1, 0):
        number: int = op.args[position].index
        if number in made and uses[number] == 1:
            return position, op.args[1 - position]
    return None
