# SPDX-License-Identifier: Apache-2.0
"""A matrix times one column, as the sum of products that it is, for a compiler on a CPU.

A library of matrix products is made for many columns. For a single one the compiler's own loop
reads the matrix faster, and has what comes before and after in it. That holds where the entries
that are added up are neighbours in memory; elsewhere the library is as good.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from hesse.tracing.graph import Meta, Op

_aten = torch.ops.aten


def as_sum(op: Op, args: tuple, metas: dict[int, Meta], graph: fx.Graph) -> Any:
    """A b, or X + A b, in `graph`; None for what is not of this form.

    Args:
        op, args: the operation, and its arguments as nodes of `graph`.
    """
    if op.function not in (_aten.mm.default, _aten.addmm.default) or op.kwargs:
        return None
    rows, column = (metas[part.index] for part in op.args[-2:])
    if column.shape[1] != 1 or not _adds_neighbours(rows):
        return None
    matrix, vector = args[-2:]
    transposed = graph.call_function(_aten.t.default, (vector,))
    products = graph.call_function(_aten.mul.Tensor, (matrix, transposed))
    result = graph.call_function(_aten.sum.dim_IntList, (products, [1], True))
    return result if len(args) == 2 else graph.call_function(_aten.add.Tensor, (args[0], result))


def _adds_neighbours(rows: Meta) -> bool:
    real = rows.dtype.is_floating_point
    return real and rows.device.type == "cpu" and rows.is_contiguous
