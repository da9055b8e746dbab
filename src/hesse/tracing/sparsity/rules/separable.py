# SPDX-License-Identifier: Apache-2.0
r"""Averages over windows, interpolation between the points of a grid, and the adjoints of these.

Images are mapped one by one, and along one dimension after the other: $A = A_1 \otimes A_2$. The
pattern of $A_1$ is that of $A\,(e_i \otimes 1) = A_1 e_i \otimes A_2 1$ for all unit vectors $e_i$.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hesse.tracing.graph import Node
from hesse.tracing.sparsity.patterns import Pattern, gather_groups
from hesse.tracing.sparsity.tape import Tape

_aten = torch.ops.aten

_MOST_NUMBERS = 2**22  # in the images that an operation is run on at a time

# (images, node, sizes of the result) -> the images of these: the node with other images.
Run = Callable[[Tensor, Node, Sequence[int]], Tensor]


def patterns(node: Node, tape: Tape) -> Sequence[Pattern | None] | None:
    """Every entry of an image depends on a box of entries of the image in its place."""
    if node.function not in _DIMENSIONS or tape.moving(node) != [node.args[0].index]:
        return None
    d, run = _DIMENSIONS[node.function]
    (source,), (result,) = tape.moving(node), node.results
    assert result is not None
    before, after = tape.shape(source)[-d:], tape.shape(result)[-d:]
    like = torch.empty((), dtype=tape.dtype(source))
    targets = members = np.arange(tape.numel(result) // np.prod(after, dtype=int))
    for k in range(d):
        rows, columns = _along(k, node, run, like, before, after)
        targets = np.add.outer(targets * after[k], rows).reshape(-1)
        members = np.add.outer(members * before[k], columns).reshape(-1)
    size = tape.numel(result)
    return [gather_groups(tape.patterns[source], targets, size, members=members)]


def _along(
    k: int, node: Node, run: Run, like: Tensor, before: Sequence[int], after: Sequence[int]
) -> tuple[Any, Any]:
    """The rows and columns of the nonzeros of the factor along one dimension."""
    n, d = before[k], len(before)
    others = [1 + i for i in range(d) if i != k]
    units = torch.eye(n, dtype=like.dtype).view(n, 1, *(n if i == k else 1 for i in range(d)))
    touched = []
    for part in units.split(max(_MOST_NUMBERS // math.prod(before), 1)):
        images = run(part.expand(len(part), 1, *before).contiguous(), node, after)
        nonzero = images.squeeze(1) != 0
        touched.append(nonzero.sum(others) > 0 if others else nonzero)
    columns, rows = torch.cat(touched).nonzero(as_tuple=True)
    return rows.numpy(), columns.numpy()


def _forward(images: Tensor, node: Node, after: Sequence[int]) -> Tensor:
    return node.function(images, *node.args[1:], **node.kwargs)


def _pool_backward(images: Tensor, node: Node, after: Sequence[int]) -> Tensor:
    return node.function(images, images.new_zeros(len(images), 1, *after), *node.args[2:])


def _upsample_backward(images: Tensor, node: Node, after: Sequence[int]) -> Tensor:
    return node.function(images, node.args[1], [len(images), 1, *after], *node.args[3:])


def _with_adjoint(name: str, backward: Run) -> dict[Any, Run]:
    adjoint = getattr(_aten, f"{name}_backward").default
    return {getattr(_aten, name).default: _forward, adjoint: backward}


_DIMENSIONS: dict[Any, tuple[int, Run]] = {
    function: (d, run)
    for d, names, backward in [
        *((d, [f"avg_pool{d}d", f"_adaptive_avg_pool{d}d"], _pool_backward) for d in (2, 3)),
        (1, ["upsample_linear1d"], _upsample_backward),
        (2, ["upsample_bilinear2d", "upsample_bicubic2d"], _upsample_backward),
        (2, ["_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"], _upsample_backward),
        (3, ["upsample_trilinear3d"], _upsample_backward),
    ]
    for name in names
    if hasattr(_aten, name)
    for function, run in _with_adjoint(name, backward).items()
}
