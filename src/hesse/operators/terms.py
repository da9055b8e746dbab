# SPDX-License-Identifier: Apache-2.0
"""Expressions of operators, multiplied out: they show which sums and products are symmetric.

The terms of A' (B + 2 I) are {A' B: 1, A': 2}. An expression is symmetric if its adjoint has the
same terms: A'A, R'HR for a symmetric H, A + A', every polynomial of a symmetric operator. Factors
are compared by what they are: an operator object, or the memory of a matrix.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable

from torch import Tensor

from hesse.vectors.arrays import as_array
from hesse.vectors.places import Places, Where

Factor = tuple[Hashable, bool | None]
"""What it is, and whether it is transposed; None for a symmetric one."""

Terms = dict[tuple[Factor, ...], float]
"""The coefficient of each product of factors; () is the identity."""

_MOST = 64  # terms; an expression of more is one factor of its own


def factor(what: Hashable, *, symmetric: bool, transposed: bool = False) -> Terms:
    """The terms of an operator that is no expression."""
    return {((what, None if symmetric else transposed),): 1.0}


def added(a: Terms, b: Terms) -> Terms | None:
    """The terms of A + B. Those that cancel stay, as their rounding errors do."""
    total = dict(a)
    for word, coefficient in b.items():
        total[word] = total.get(word, 0.0) + coefficient
    return total if len(total) <= _MOST else None


def scaled(c: float, a: Terms) -> Terms:
    """The terms of c A."""
    return {word: c * coefficient for word, coefficient in a.items()}


def multiplied(a: Terms, b: Terms) -> Terms | None:
    """The terms of A B."""
    if len(a) * len(b) > _MOST:
        return None
    total: Terms = {}
    for left, x in a.items():
        for right, y in b.items():
            total[left + right] = total.get(left + right, 0.0) + x * y
    return total


def adjoint(a: Terms) -> Terms:
    """The terms of A'."""
    return {
        tuple((what, None if side is None else not side) for what, side in reversed(word)): c
        for word, c in a.items()
    }


def are_symmetric(a: Terms | None) -> bool:
    """Whether these are the terms of a symmetric operator; None if nothing is known of it."""
    return a is not None and adjoint(a) == a


def of_matrix(matrix: Tensor, *, symmetric: bool) -> Terms | None:
    """The terms of a matrix, by its memory; a transposed view is the adjoint. None if unknown."""
    if type(matrix) is not Tensor or matrix.device.type == "meta":
        return None
    (rows, columns), (down, right) = matrix.shape, matrix.stride()
    transposed = (down, rows) < (right, columns)
    layout = (columns, rows, right, down) if transposed else (rows, columns, down, right)
    what = (matrix.data_ptr(), matrix.dtype, str(matrix.device), *layout)
    return factor(what, symmetric=symmetric, transposed=transposed)


def of_entries(where: Where) -> Hashable:
    """What tells one set of entries of a vector from another."""
    if isinstance(where, slice):
        return where.start, where.stop
    index = where.index if isinstance(where, Places) else where
    return hashlib.sha256(as_array(index).tobytes()).digest()
