# SPDX-License-Identifier: Apache-2.0
"""Write a matrix times one column as a multiplication and a sum, for a compiler on a CPU.

A library of matrix products is made for many columns. For a single column the compiler's own loop
reads the matrix faster, and can include what comes before and after the product. That holds where
the summed entries are neighbours in memory; elsewhere the library is as good. The sum is the same
up to its order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from hesse.tracing.graph import Node, TensorMeta

_aten = torch.ops.aten


def as_sum(node: Node, args: tuple, metas: dict[int, TensorMeta], graph: fx.Graph) -> Any:
    """A b, or X + A b, as sums in `graph`; None for a node that is not of this form.

    Args:
        node: of a program.
        args: its arguments as nodes of `graph`.
    """
    if node.function not in (_aten.mm.default, _aten.addmm.default) or node.kwargs:
        return None
    left, column = (metas[part.index] for part in node.args[-2:])
    if column.shape[1] != 1 or not _has_contiguous_rows(left):
        return None
    matrix, vector = args[-2:]
    transposed = graph.call_function(_aten.t.default, (vector,))
    products = graph.call_function(_aten.mul.Tensor, (matrix, transposed))
    result = graph.call_function(_aten.sum.dim_IntList, (products, [1], True))
    return result if len(args) == 2 else graph.call_function(_aten.add.Tensor, (args[0], result))


def _has_contiguous_rows(matrix: TensorMeta) -> bool:
    real = matrix.dtype.is_floating_point
    return real and matrix.device.type == "cpu" and matrix.is_contiguous
