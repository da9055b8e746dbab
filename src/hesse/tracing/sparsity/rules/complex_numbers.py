# SPDX-License-Identifier: Apache-2.0
"""Complex numbers, of which each is one entry, and Fourier transforms, which mix a dimension."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hesse.tracing.graph import Node
from hesse.tracing.sparsity.patterns import Pattern, gather_groups, select
from hesse.tracing.sparsity.rules.indexing import VIEWS_OF_NUMBERS
from hesse.tracing.sparsity.rules.reductions import sum_over
from hesse.tracing.sparsity.tape import Tape, row_numbers

_aten = torch.ops.aten

_TRANSFORMS = {_aten._fft_c2c.default, _aten._fft_r2c.default, _aten._fft_c2r.default}


def patterns(node: Node, tape: Tape) -> Sequence[Pattern | None] | None:
    """A complex number depends on what its two parts depend on, and they on what it does."""
    if node.function not in VIEWS_OF_NUMBERS | _TRANSFORMS or not tape.moving(node):
        return None
    (number,) = tape.moving(node)
    pattern, (result,) = tape.patterns[number], node.results
    assert result is not None
    if node.function is _aten.view_as_complex.default:
        pairs = np.arange(tape.numel(number)) // 2
        return [gather_groups(pattern, pairs, tape.numel(result))]
    if node.function is _aten.view_as_real.default:
        return [select([pattern], np.arange(tape.numel(result)) // 2 + 1)]
    if node.function in _TRANSFORMS:
        return [_transformed(tape, number, node.args[1], result)]
    return [pattern]


def _transformed(tape: Tape, number: int, dims: Sequence[int], result: int) -> Pattern:
    """Along the dimensions every result depends on all entries."""
    shape = list(tape.shape(number))
    for dim in dims:
        shape[dim] = 1
    totals = torch.arange(1, 1 + torch.Size(shape).numel()).view(shape)
    whole, _ = sum_over(tape, number, dims)
    return select([whole], row_numbers(totals.expand(tape.shape(result))))
