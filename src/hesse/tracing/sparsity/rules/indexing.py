# SPDX-License-Identifier: Apache-2.0
"""Operations that move entries, copy them, or put zeros beside them.

Such an operation is run on the row numbers of its arguments: the numbers in its result say where
each entry comes from.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hesse.tracing.graph import Node, substitute
from hesse.tracing.operations import is_view
from hesse.tracing.sparsity.patterns import Pattern, select
from hesse.tracing.sparsity.tape import Tape, row_numbers

_aten = torch.ops.aten

_INDEXING = frozenset(
    getattr(getattr(_aten, name), overload)
    for name, overload in [
        *(("slice_backward", "default"), ("select_backward", "default")),
        *(("diagonal_backward", "default"), ("slice_scatter", "default")),
        *(("select_scatter", "default"), ("diagonal_scatter", "default")),
        *(("as_strided_scatter", "default"), ("index_copy", "default")),
        *(("cat", "default"), ("stack", "default"), ("repeat", "default"), ("flip", "default")),
        *(("roll", "default"), ("rot90", "default"), ("constant_pad_nd", "default")),
        *(("index", "Tensor"), ("_unsafe_index", "Tensor"), ("index_select", "default")),
        *(("gather", "default"), ("take", "default"), ("scatter", "src")),
        *(
            ("scatter", "value"),
            ("index_fill", "int_Scalar"),
            ("index_fill", "int_Tensor"),
            ("masked_scatter", "default"),
        ),
        *(
            ("masked_select", "default"),
            ("masked_scatter_backward", "default"),
            ("tril", "default"),
            ("triu", "default"),
        ),
        *(("clone", "default"), ("detach", "default"), ("lift_fresh", "default")),
        *(("contiguous", "default"), ("_to_copy", "default"), ("copy", "default")),
        *(("_reshape_copy", "default"), ("unfold_copy", "default"), ("view_copy", "default")),
        *(("diag_embed", "default"), ("im2col", "default"), ("embedding", "default")),
        *(("channel_shuffle", "default"), ("pixel_shuffle", "default")),
        *(("pixel_unshuffle", "default"), ("upsample_nearest1d", "default")),
        *(("upsample_nearest2d", "default"), ("upsample_nearest3d", "default")),
        *((f"_upsample_nearest_exact{d}d", "default") for d in (1, 2, 3)),
        *(("reflection_pad1d", "default"), ("reflection_pad2d", "default")),
        *(("reflection_pad3d", "default"), ("replication_pad1d", "default")),
        *(("replication_pad2d", "default"), ("replication_pad3d", "default")),
    ]
    if hasattr(_aten, name) and hasattr(getattr(_aten, name), overload)
)

# Views that do more than to move entries: see `complex_numbers`.
VIEWS_OF_NUMBERS = frozenset(
    [
        *(_aten.view_as_complex.default, _aten.view_as_real.default),
        *(_aten._conj.default, _aten._neg_view.default),
    ]
)

# They read the shape of their argument, and none of its entries. What is empty is written to before
# it is read.
FILLS = frozenset(
    getattr(_aten, name).default
    for name in (
        *("new_zeros", "zeros_like", "new_ones", "ones_like", "new_full", "full_like"),
        *("new_empty", "empty_like", "new_empty_strided"),
    )
)

# They have no kernel for integers. The numbers in float64 are as exact.
_FOR_FLOATS = ("im2col", "upsample_", "_upsample_", "reflection_pad", "replication_pad")

# Arguments that say how to store a result.
STORAGE = frozenset(["dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking"])


def patterns(node: Node, tape: Tape) -> Sequence[Pattern | None] | None:
    """The patterns of what moves entries."""
    if node.function in FILLS:
        return [None]
    if not moves_entries(node):
        return None
    values, sources, first = {}, [], 1
    dtype = torch.float64 if _needs_floats(node) else torch.int64
    for number in dict.fromkeys(node.reads()):
        if number in tape.patterns:
            values[number] = tape.numbers(number, first).to(dtype)
            first += tape.numel(number)
            sources.append(tape.patterns[number])
        elif tape.is_index(number):
            values[number] = tape.operand(number)
        else:  # what a linear operation copies from elsewhere is zero
            values[number] = torch.zeros(tape.shape(number), dtype=dtype)
    kwargs = {
        key: substitute(argument, values.__getitem__)
        for key, argument in node.kwargs.items()
        if key not in STORAGE
    }
    result = node.function(*substitute(node.args, values.__getitem__), **kwargs)
    parts = [result] if node.single else result
    return [select(sources, row_numbers(part)) for part in parts]


def moves_entries(node: Node) -> bool:
    """Whether entries of the result are entries of an argument, or zero."""
    if node.function in VIEWS_OF_NUMBERS:
        return False
    return is_view(node.function) or node.function in _INDEXING or _replaces(node)


def _replaces(node: Node) -> bool:
    """Whether it is an `index_put` that replaces entries; one that adds is a scatter."""
    if node.function not in (_aten.index_put.default, _aten._unsafe_index_put.default):
        return False
    return not (len(node.args) > 3 and node.args[3]) and not node.kwargs.get("accumulate")


def _needs_floats(node: Node) -> bool:
    return node.function.overloadpacket.__name__.startswith(_FOR_FLOATS)
