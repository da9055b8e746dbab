# SPDX-License-Identifier: Apache-2.0
"""Patterns: for every entry of a tensor the set of entries of the direction that it depends on.

The pattern of a tensor with m entries is a Boolean matrix in CSR format, shape (m, n): row i holds
the set of entry i, in row-major order. An operation that moves, adds or scales entries is a
selection of rows or a union of rows. Row numbers here count from 1; 0 stands for the empty row,
which is that of an entry that is zero whatever the direction is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from hesse.tracing.graph import UntraceableError

Pattern = Any
"""A `scipy.sparse.csr_array` of bool."""

# Bool and int32: 5 bytes an entry. A matrix of more is not sparse in the sense of this package.
MAX_ENTRIES = 50_000_000


class TooDenseError(UntraceableError):
    """A tensor depends on so much of the direction that its pattern is no sparse matrix."""


def identity(n: int) -> Pattern:
    """The pattern of the direction itself."""
    return sp.eye_array(n, dtype=bool, format="csr")


def empty(m: int, n: int) -> Pattern:
    """The pattern of zeros."""
    return sp.csr_array((m, n), dtype=bool)


def select(sources: Sequence[Pattern], numbers: Any) -> Pattern:
    """The rows with these numbers of the sources, one below the other.

    >>> select([identity(2)], np.array([2, 0, 2])).toarray().astype(int)
    array([[0, 1],
           [0, 0],
           [0, 1]])
    """
    source: Any = sources[0] if len(sources) == 1 else sp.vstack(sources, format="csr")
    numbers = numbers.reshape(-1)
    if _are_neighbours(numbers):
        first, last = int(numbers[0]) - 1, int(numbers[-1])
        return source if last - first == source.shape[0] else source[first:last]
    lengths = np.concatenate([[0], np.diff(source.indptr)])
    _check_size(int(lengths[numbers].sum()))
    if numbers.size and numbers.min() == 0:
        with_empty: Any = sp.vstack([empty(1, source.shape[1]), source], format="csr")
        return with_empty[numbers]
    return source[numbers - 1]


def union(parts: Sequence[Pattern]) -> Pattern:
    """The union of patterns of one shape, row by row."""
    total = parts[0]
    for part in parts[1:]:
        if not _is_same(total, part):
            _check_size(max(total.nnz, part.nnz))
            total = total + part
    return total


def gather_groups(source: Pattern, targets: Any, rows: int, *, members: Any = None) -> Pattern:
    """A pattern of so many rows: row r is the union of the rows i with targets[i] == r.

    Args:
        source: the pattern that the rows are taken from.
        targets: a row number of the result, counted from 0, for each member.
        rows: of the result.
        members: row numbers of the source, counted from 0; by default all of them, in order.

    >>> gather_groups(identity(3), np.array([1, 0, 1]), 2).toarray().astype(int)
    array([[0, 1, 0],
           [1, 0, 1]])
    """
    targets = targets.reshape(-1)
    members = np.arange(len(targets)) if members is None else members.reshape(-1)
    _check_size(min(int(np.diff(source.indptr)[members].sum()), rows * source.shape[1]))
    ones = np.ones(len(targets), dtype=bool)
    groups = sp.csr_array((ones, (targets, members)), shape=(rows, source.shape[0]))
    return (groups @ source).tocsr()


def _are_neighbours(numbers: Any) -> bool:
    """Whether they are a, a + 1, a + 2, ... with a > 0."""
    if not numbers.size or numbers[0] == 0 or numbers[-1] - numbers[0] != numbers.size - 1:
        return False
    return bool((np.diff(numbers) == 1).all())


def _is_same(one: Pattern, two: Pattern) -> bool:
    if one is two:
        return True
    return (
        one.nnz == two.nnz
        and np.array_equal(one.indptr, two.indptr)
        and np.array_equal(one.indices, two.indices)
    )


def _check_size(entries: int) -> None:
    if entries > MAX_ENTRIES:
        raise TooDenseError(f"gives a tensor with {entries:.2g} dependences on entries of x")
