# SPDX-License-Identifier: Apache-2.0
"""Products with a matrix that does not depend on the direction.

In C = A B an entry of C depends on a row of A or on a column of B. Of a known matrix only the
entries count that differ from zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hesse.tracing.graph import Node, Value
from hesse.tracing.sparsity.patterns import Pattern, gather_groups, select, union
from hesse.tracing.sparsity.tape import Tape, row_numbers

_aten = torch.ops.aten

# The positions of A and B among the arguments, and whether a summand comes first.
_PRODUCTS: dict[Any, tuple[int, bool]] = {
    _aten.mm.default: (0, False),
    _aten.bmm.default: (0, False),
    _aten.mv.default: (0, False),
    _aten.dot.default: (0, False),
    _aten.addmm.default: (1, True),
    _aten.addmv.default: (1, True),
    _aten.baddbmm.default: (1, True),
}


def patterns(node: Node, tape: Tape) -> Sequence[Pattern | None] | None:
    """The pattern of A B, or of C + A B."""
    if node.function not in _PRODUCTS:
        return None
    first, adds = _PRODUCTS[node.function]
    a, b = node.args[first : first + 2]
    (result,) = node.results
    assert result is not None
    parts = []
    if adds and tape.moves(node.args[0]):
        parts.append(tape.broadcast(node.args[0].index, tape.shape(result)))
    if tape.moves(a):
        parts.append(_product(a, b, tape, moving_first=True))
    elif tape.moves(b):
        parts.append(_product(a, b, tape, moving_first=False))
    return [union(parts)]


def _product(a: Value, b: Value, tape: Tape, *, moving_first: bool) -> Pattern:
    """The pattern of A B in batches, (t, p, q) times (t, q, r), as that of X Y with X moving."""
    shape_a, shape_b = _as_batch(tape.shape(a.index), 0), _as_batch(tape.shape(b.index), 1)
    (t, p, q), r = shape_a, shape_b[2]
    results = torch.arange(t * p * r).view(t, p, r)
    if moving_first:
        x, y, numbers = a, b, torch.arange(t * p * q).view(t, p, q)
    else:  # A B = (B' A')'
        x, y, numbers = b, a, torch.arange(t * q * r).view(t, q, r).mT
        results, p, r = results.mT, r, p
    matrix = None
    if tape.is_known(y):
        matrix = tape.operand(y.index).reshape(shape_b if moving_first else shape_a) != 0
        matrix = matrix if moving_first else matrix.mT
    pattern = tape.patterns[x.index]
    if matrix is None or bool(matrix.all()):
        return _dense(pattern, numbers, results)
    batch, inner, column = matrix.nonzero(as_tuple=True)
    targets = results.expand(t, p, r)[batch, :, column]
    members = numbers[batch, :, inner]
    return gather_groups(pattern, row_numbers(targets), t * p * r, members=row_numbers(members))


def _dense(pattern: Pattern, numbers: Tensor, results: Tensor) -> Pattern:
    """Row (t, i) of the result depends on all of row (t, i) of the argument."""
    t, p, q = numbers.shape
    rows = torch.arange(t * p).view(t, p, 1)
    order = torch.empty(numbers.numel(), dtype=torch.int64)
    order[numbers.reshape(-1)] = rows.expand(t, p, q).reshape(-1)
    union_of_rows = gather_groups(pattern, row_numbers(order), t * p)
    source = torch.empty(results.numel(), dtype=torch.int64)
    source[results.reshape(-1)] = rows.expand(results.shape).reshape(-1)
    return select([union_of_rows], row_numbers(source + 1))


def _as_batch(shape: tuple[int, ...], vector_dim: int) -> tuple[int, int, int]:
    """(t, p, q) of a factor: a vector is a row if it stands first, else a column."""
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    if len(shape) == 2:
        return 1, shape[0], shape[1]
    return (1, 1, shape[0]) if vector_dim == 0 else (1, shape[0], 1)
