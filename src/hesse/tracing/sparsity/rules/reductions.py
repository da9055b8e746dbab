# SPDX-License-Identifier: Apache-2.0
"""Sums over dimensions, and operations that mix all entries along a dimension, as solving does."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from hesse.tracing.graph import Node
from hesse.tracing.sparsity.patterns import Pattern, gather_groups, select
from hesse.tracing.sparsity.tape import Tape, row_numbers

_aten = torch.ops.aten

_SUMS = frozenset(
    [
        *(_aten.sum.default, _aten.sum.dim_IntList, _aten.mean.default, _aten.mean.dim),
        *(_aten.amax.default, _aten.amin.default),  # of sizes, by which numbers are scaled
    ]
)

# They mix the entries along a dimension, which is the argument at this position.
_MIXING = {
    _aten._softmax.default: 1,
    _aten._log_softmax.default: 1,
    _aten._softmax_backward_data.default: 2,
    _aten._log_softmax_backward_data.default: 2,
}
# They solve equations for the columns of the argument at this position, or else for its rows.
_SOLVES = {
    _aten.linalg_lu_solve.default: 2,
    _aten.linalg_solve_triangular.default: 1,
}


def patterns(node: Node, tape: Tape) -> Sequence[Pattern | None] | None:
    """A sum is the union of its terms; along a mixed dimension every entry gets that union."""
    if node.function in _SUMS:
        (number,) = tape.moving(node)
        return [sum_over(tape, number, node.args[1] if len(node.args) > 1 else None)[0]]
    if node.function in _MIXING and node.args[0].index in tape.patterns:
        number = node.args[0].index
        total, groups = sum_over(tape, number, [node.args[_MIXING[node.function]]])
        return [select([total], groups + 1)]
    if node.function in _SOLVES and tape.moving(node) == [node.args[_SOLVES[node.function]].index]:
        (number,) = tape.moving(node)
        total, groups = sum_over(tape, number, [-2 if node.kwargs.get("left", True) else -1])
        return [select([total], groups + 1)]
    if node.function is _aten.native_batch_norm_backward.default:
        return _batch_norm(node, tape)
    if node.function is _aten.glu_backward.default and tape.moving(node) == [node.args[0].index]:
        return [_two_halves(tape, node.args[0].index, node.args[2])]
    if node.function is _aten.cumsum.default:
        return [_cumulative_sum(tape, node.args[0].index, node.args[1])]
    return None


def sum_over(tape: Tape, number: int, dims: Sequence[int] | None) -> tuple[Pattern, np.ndarray]:
    """The pattern of the sum over dimensions, and the entry of it that each entry goes to."""
    shape = tape.shape(number)
    dims = list(dims) if dims else list(range(len(shape)))
    summed = {dim % len(shape) for dim in dims} if shape else set()
    kept = [1 if dim in summed else size for dim, size in enumerate(shape)]
    count = math.prod(kept)
    groups = row_numbers(torch.arange(count).view(kept).expand(shape))
    return gather_groups(tape.patterns[number], groups, count), groups


def _batch_norm(node: Node, tape: Tape) -> Sequence[Pattern | None] | None:
    """The gradient in the inputs, which in evaluation is entry by entry, weights and biases."""
    g, trains = node.args[0].index, node.args[7]
    if tape.moving(node) != [g]:
        return None
    others = [dim for dim in range(len(tape.shape(g))) if dim != 1]
    total, groups = sum_over(tape, g, others)
    rows = select([total], groups + 1) if trains else tape.patterns[g]
    pairs = zip(node.results, (rows, total, total), strict=True)
    return [None if number is None else pattern for number, pattern in pairs]


def _two_halves(tape: Tape, number: int, dim: int) -> Pattern:
    """The entries twice along a dimension."""
    numbers = tape.numbers(number)
    return select([tape.patterns[number]], row_numbers(torch.cat([numbers, numbers], dim)))


def _cumulative_sum(tape: Tape, number: int, dim: int) -> Pattern:
    """Entry i along the dimension depends on those up to i."""
    ids = torch.arange(tape.numel(number)).view(tape.shape(number))
    if ids.ndim == 0:
        return tape.patterns[number]
    lines = ids.movedim(dim, -1).reshape(-1, ids.shape[dim])
    later, earlier = torch.tril_indices(ids.shape[dim], ids.shape[dim])
    targets, members = row_numbers(lines[:, later]), row_numbers(lines[:, earlier])
    return gather_groups(tape.patterns[number], targets, ids.numel(), members=members)
