# SPDX-License-Identifier: Apache-2.0
"""Operations of which every result depends on all entries of a matrix, an image or an example.

They keep the first dimensions, which count the matrices: the pattern is dense within each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from hesse.tracing.graph import Node
from hesse.tracing.sparsity.patterns import Pattern, gather_groups, select, union
from hesse.tracing.sparsity.tape import Tape

_aten = torch.ops.aten


def patterns(node: Node, tape: Tape) -> Sequence[Pattern | None] | None:
    """The union over each matrix, for all entries of the matrix in its place."""
    if node.function not in _KEPT:
        return None
    return [
        None if number is None else _mixed(tape, tape.moving(node), number, _KEPT[node.function])
        for number in node.results
    ]


def _mixed(tape: Tape, sources: Sequence[int], result: int, kept: Callable[[int], int]) -> Pattern:
    shapes = [tape.shape(number) for number in (*sources, result)]
    leading = {shape[: max(kept(len(shape)), 0)] for shape in shapes}
    count = math.prod(leading.pop()) if len(leading) == 1 else 1  # broadcast, they are in no order

    def matrix_of(number: int) -> Any:
        size = tape.numel(number)
        return np.arange(size) // max(size // max(count, 1), 1)

    wholes = [gather_groups(tape.patterns[s], matrix_of(s), count) for s in sources]
    return select([union(wholes)], matrix_of(result) + 1)


def _batches(dimensions: int) -> int:
    return dimensions - 2


def _examples(dimensions: int) -> int:
    return 1


def _none(dimensions: int) -> int:
    return 0


# The number of dimensions that are kept, of a tensor with so many.
_KEPT: dict[Any, Callable[[int], int]] = {
    _aten.cholesky_solve.default: _batches,
    _aten._linalg_solve_ex.default: _batches,
    _aten.linalg_matrix_exp.default: _batches,
    _aten.grid_sampler_2d.default: _examples,
    _aten.grid_sampler_2d_backward.default: _examples,
    _aten.grid_sampler_3d.default: _examples,
    _aten.grid_sampler_3d_backward.default: _examples,
    _aten._trilinear.default: _none,
    _aten.convolution.default: _none,  # of kernels that depend on the direction
    _aten.convolution_backward.default: _none,
}
