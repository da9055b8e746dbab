# SPDX-License-Identifier: Apache-2.0
r"""Tensors that are linear in a direction v, as sums of terms with few different factors.

$$ t_r = \sum_p \; c_p \!\! \sum_{k \,:\, r_{pk} = r} b_p[n_{pk}] \, v[j_{pk}] $$

A *term* p is a number c, a tensor b of *factors*, and three arrays n, r, j, all of which hold for
every point but b. Sums, and operations that move entries, change the arrays alone, and a factor
that many entries have in common is multiplied once. So most operations cost nothing at a point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hesse.tracing.graph import UntraceableError

# Shorter rows of a grid are not faster in slices.
_SHORT_ROW = 16

MOST_TERMS = 64
"""Of one tensor; one with more is better multiplied by directions."""


class TooManyTermsError(UntraceableError):
    """A tensor is the sum of so many terms that they cost more than directions."""


@dataclass(frozen=True, eq=False)
class Term:
    """One term of a tensor.

    Args:
        scale: c.
        factors: b, flat; None for ones.
        numbers: n, where each contribution has its factor; None for ones.
        rows: r, the entry of the tensor that it belongs to.
        columns: j, the entry of the direction that it multiplies.
    """

    scale: float
    factors: Tensor | None
    numbers: Any
    rows: Any
    columns: Any


class Arrays:
    """Index arrays; equal ones become one object, so that they are compared by identity."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def one(self, array: Any) -> Any:
        """The array, or an equal one that was seen before."""
        array = np.ascontiguousarray(array, dtype=np.int32)  # a gather waits for its indices, too
        known = self._known.setdefault((len(array), hash(array.tobytes())), array)
        return known if np.array_equal(known, array) else array

    def count(self, size: int) -> Any:
        """0, 1, ..., size - 1."""
        return self.one(np.arange(size))

    def moved(self, terms: Sequence[Term], pattern: Any) -> list[Term]:
        """The terms of M t, for a matrix M of zeros and ones in CSR format."""
        columns = pattern.tocsc()
        found: dict[int, tuple[Any, Any]] = {}
        result = []
        for term in terms:
            if id(term.rows) not in found:
                rows, members = _moved(term.rows, columns)
                found[id(term.rows)] = self.one(rows), members
            rows, members = found[id(term.rows)]
            if members is not None:
                numbers = None if term.numbers is None else self.one(term.numbers[members])
                reads = self.one(term.columns[members])
                term = replace(term, numbers=numbers, columns=reads)
            result.append(replace(term, rows=rows))
        return [term for term in result if len(term.rows)]

    def times(
        self, terms: Sequence[Term], factor: Tensor, shape: Sequence[int], dtype: torch.dtype
    ) -> list[Term]:
        """The terms of t * factor, for t of this shape; a Boolean factor says where t is zero."""
        found: dict[Any, Tensor] = {}
        every = self.count(factor.expand(shape).numel())
        result = []
        for term in terms:
            key = id(term.factors), id(term.numbers), id(term.rows)
            if key not in found:
                found[key] = _product(term, factor, shape, every).to(dtype)
            numbers = self.count(len(term.rows))
            result.append(replace(term, factors=found[key], numbers=numbers))
        return result


def scaled(terms: Sequence[Term], c: float) -> list[Term]:
    """The terms of c t."""
    return [replace(term, scale=c * term.scale) for term in terms]


def added(terms: Sequence[Term]) -> list[Term]:
    """The same terms, with those that differ in their numbers c alone made one."""
    sums: dict[Any, Term] = {}
    for term in terms:
        key = id(term.factors), id(term.numbers), id(term.rows), id(term.columns)
        known = sums.get(key)
        sums[key] = term if known is None else replace(known, scale=known.scale + term.scale)
    if len(sums) > MOST_TERMS:
        raise TooManyTermsError(f"a tensor is the sum of {len(sums)} terms")
    return [term for term in sums.values() if term.scale != 0.0]


def _moved(rows: Any, columns: Any) -> tuple[Any, Any]:
    """The new rows, and which contributions these are of; None for all of them, in order."""
    counts = np.diff(columns.indptr)[rows]
    starts = columns.indptr[rows]
    if (counts == 1).all():
        return columns.indices[starts], None
    members = np.repeat(np.arange(len(rows)), counts)
    within = np.arange(len(members)) - np.repeat(np.cumsum(counts) - counts, counts)
    return columns.indices[starts[members] + within], members


def _product(term: Term, factor: Tensor, shape: Sequence[int], every: Any) -> Tensor:
    """A factor for every contribution of a term that is multiplied."""
    if term.rows is every:
        if term.factors is None:
            return factor.expand(shape).reshape(-1)
        if term.numbers is every:
            return _times(term.factors.reshape(tuple(shape)), factor).reshape(-1)
    values = picked(factor.expand(shape).reshape(-1), term.rows)
    return values if term.factors is None else _times(picked(term.factors, term.numbers), values)


def _times(factors: Tensor, factor: Tensor) -> Tensor:
    if factor.dtype is torch.bool:  # NaN times zero is no zero
        return torch.where(factor, factors, 0.0)
    return factors * factor


def picked(tensor: Tensor, numbers: Any) -> Tensor:
    """Some entries of a flat tensor: a view of neighbours, slices of a grid."""
    levels = _levels(numbers)
    if levels is None or levels[-1][1] != 1 or levels[-1][0] < _SHORT_ROW < len(numbers):
        return tensor.index_select(0, torch.from_numpy(numbers).to(tensor.device))
    first, last = int(numbers[0]), int(numbers[-1])
    part = tensor if last - first + 1 == len(tensor) else tensor[first : last + 1]
    if len(levels) == 1:
        return part
    for depth, (_, step) in enumerate(levels[:-1], start=1):
        span = 1 + sum((count - 1) * step for count, step in levels[depth:])
        part = part.unfold(-1, span, step)
    return part.reshape(-1)


def _levels(numbers: Any) -> list[tuple[int, int]] | None:
    """(count, step) of ranges within ranges, the outermost first; None for other numbers.

    >>> _levels(np.array([5, 6, 7, 15, 16, 17]))
    [(2, 10), (3, 1)]
    >>> _levels(np.array([5, 6, 8, 9, 15, 16, 18, 19]))
    [(2, 10), (2, 3), (2, 1)]
    >>> _levels(np.array([5, 6, 8]))
    """
    levels: list[tuple[int, int]] = []
    starts = numbers
    while len(starts) > 1:
        steps = np.diff(starts)
        step, others = int(steps[0]), np.flatnonzero(steps != steps[0])
        count = int(others[0]) + 1 if len(others) else len(starts)
        if step <= 0 or len(starts) % count or (np.diff(starts.reshape(-1, count)) != step).any():
            return None
        levels.insert(0, (count, step))
        starts = starts[::count]
    return levels or None
