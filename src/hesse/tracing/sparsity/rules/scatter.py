# SPDX-License-Identifier: Apache-2.0
"""Operations that add entries to places, such as the adjoints of those that move entries.

Running the operation that reads from the places, on their numbers, says where each entry goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hesse.tracing.graph import Node
from hesse.tracing.sparsity.patterns import Pattern, gather_groups, union
from hesse.tracing.sparsity.tape import Tape, row_numbers

_aten = torch.ops.aten

# base + what is added at places: (places, node, tape) -> the place of every entry that is added.
Places = Callable[[Tensor, Node, Tape], Tensor]


def patterns(node: Node, tape: Tape) -> Sequence[Pattern | None] | None:
    """The union of all that is added to a place."""
    if node.function in _INTO_BASE:
        places, position = _INTO_BASE[node.function]
        base, added = node.args[0].index, node.args[position].index
    elif node.function in ADJOINTS:
        (base, added), places = (None, node.args[0].index), ADJOINTS[node.function]
    else:
        return None
    (result,) = node.results
    assert result is not None
    parts = [] if base not in tape.patterns else [tape.patterns[base]]
    if added in tape.patterns:
        numbers = torch.arange(tape.numel(result)).view(tape.shape(result))
        targets = places(numbers, node, tape)
        source = tape.broadcast(added, targets.shape)
        parts.append(gather_groups(source, row_numbers(targets), tape.numel(result)))
    return [union(parts)]


def _index_put(numbers: Tensor, node: Node, tape: Tape) -> Tensor:
    index = [None if a is None else tape.operand(a.index) for a in node.args[1]]
    return numbers[tuple(slice(None) if part is None else part for part in index)]


def _index_add(numbers: Tensor, node: Node, tape: Tape) -> Tensor:
    return numbers.index_select(node.args[1], tape.operand(node.args[2].index))


def _put(numbers: Tensor, node: Node, tape: Tape) -> Tensor:
    return numbers.take(tape.operand(node.args[1].index))


def _scatter_add(numbers: Tensor, node: Node, tape: Tape) -> Tensor:
    index, source = tape.operand(node.args[2].index), tape.shape(node.args[3].index)
    if tuple(index.shape) != tuple(source):
        raise NotImplementedError("a scatter_add whose source is larger than its index")
    return numbers.gather(node.args[1], index)


_INTO_BASE: dict[Any, tuple[Places, int]] = {
    _aten.index_put.default: (_index_put, 2),
    _aten._unsafe_index_put.default: (_index_put, 2),
    _aten.index_add.default: (_index_add, 3),
    _aten.put.default: (_put, 2),
    _aten.scatter_add.default: (_scatter_add, 3),
}


def _through(function: Any, keep: slice, numbers: Tensor, node: Node, tape: Tape) -> Tensor:
    """The places that an operation with these arguments reads from."""
    return function(numbers.to(torch.float64), *node.args[keep]).to(torch.int64)


def _unfold(numbers: Tensor, node: Node, tape: Tape) -> Tensor:
    return numbers.unfold(*node.args[2:5])


def _embedding(numbers: Tensor, node: Node, tape: Tape) -> Tensor:
    return numbers[tape.operand(node.args[1].index)]


def _nearest(numbers: Tensor, node: Node, tape: Tape) -> Tensor:
    forward = getattr(_aten, node.function.overloadpacket.__name__.removesuffix("_backward"))
    size, _, *scales = node.args[1:]
    return forward.default(numbers.to(torch.float64), size, *scales).to(torch.int64)


def _maximum(dimensions: int, numbers: Tensor, node: Node, tape: Tape) -> Tensor:
    """Where each window has its maximum; the numbers within an image are the last argument."""
    index = tape.operand(node.args[-1].index)
    images = numbers.flatten(-dimensions)
    return images.gather(-1, index.flatten(-dimensions)).view(index.shape)


ADJOINTS: dict[Any, Places] = {
    _aten.unfold_backward.default: _unfold,
    _aten.embedding_dense_backward.default: _embedding,
    _aten.col2im.default: partial(_through, _aten.im2col.default, slice(2, None)),
    **{
        getattr(_aten, f"{name}{d}d_backward").default: _nearest
        for name in ("upsample_nearest", "_upsample_nearest_exact")
        for d in (1, 2, 3)
    },
    **{
        getattr(_aten, name.format(d)).default: partial(_maximum, d)
        for name in (
            *("max_pool{}d_with_indices_backward", "adaptive_max_pool{}d_backward"),
            "fractional_max_pool{}d_backward",
        )
        for d in (2, 3)
    },
    **{
        getattr(_aten, f"{kind}_pad{d}d_backward").default: partial(
            _through, getattr(_aten, f"{kind}_pad{d}d").default, slice(2, None)
        )
        for kind in ("reflection", "replication")
        for d in (1, 2, 3)
    },
}
