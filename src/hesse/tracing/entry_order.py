# SPDX-License-Identifier: Apache-2.0
"""Operations that move entries without changing them, replayed on the numbers of the entries.

An *order* is a tensor of integers: for every entry of a value the entry of another value that it
is, or -1 where it is zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hesse.tracing.graph import Node, substitute

_aten = torch.ops.aten

# Their results have the same entries in the same order.
RESHAPES = frozenset(
    [
        *(_aten.view.default, _aten.reshape.default, _aten._unsafe_view.default),
        *(_aten.clone.default, _aten.contiguous.default, _aten.alias.default),
        *(_aten.detach.default, _aten._to_copy.default),
        *(_aten.squeeze.dim, _aten.squeeze.default, _aten.squeeze.dims, _aten.unsqueeze.default),
    ]
)

# Their results are some of the entries of their argument, in another order.
REORDERINGS = frozenset(
    [
        *(_aten.t.default, _aten.transpose.int, _aten.permute.default, _aten.slice.Tensor),
        *(_aten.select.int, _aten.split.Tensor, _aten.split_with_sizes.default),
        *(_aten.unbind.int, _aten.flip.default, _aten.roll.default),
    ]
)


def _slice_backward(order: Tensor, args: tuple) -> Tensor:
    sizes, dim, start, end, step = args[1:6]
    whole = nowhere(sizes)
    torch.ops.aten.slice.Tensor(whole, dim, start, end, step).copy_(order)
    return whole


def _select_backward(order: Tensor, args: tuple) -> Tensor:
    sizes, dim, index = args[1:4]
    whole = nowhere(sizes)
    whole.select(dim, index).copy_(order)
    return whole


def _pad(order: Tensor, args: tuple) -> Tensor:
    return torch.nn.functional.pad(order, list(args[1]), value=-1)


PADDINGS: dict[Any, Callable[[Tensor, tuple], Tensor]] = {
    _aten.slice_backward.default: _slice_backward,
    _aten.select_backward.default: _select_backward,
    _aten.constant_pad_nd.default: _pad,
}


def nowhere(shape: Any) -> Tensor:
    """The order of zeros."""
    return torch.full(tuple(shape), -1)


def replayed(node: Node, number: int, order: Tensor) -> Tensor:
    """The order behind a node, which does to it what it does to the entries."""
    result = node.function(*substitute(node.args, lambda _: order), **node.kwargs)
    return result if node.single else result[node.results.index(number)]
