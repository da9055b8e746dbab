# SPDX-License-Identifier: Apache-2.0
"""`memory_budget=`: how to lay out the products of a risk in a given amount of memory.

What a product needs is measured, not guessed: on two small batches cut from the data, with
everything that a first product does (recording, checks, vectors), and once more for a later one.
What it needs on larger ones follows about by a straight line. Batches that are too large for the
budget are cut. What the budget leaves, measured on batches of the final size, is given to
residuals, which are kept from product to product as long as they fit: from the second on there is
more room for them.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from hesse.ad.summands import has_one_term
from hesse.data.batches import Batches
from hesse.data.slicing import num_examples, slice_batch
from hesse.engine.options import Request
from hesse.engine.recently_used import RecentlyUsed
from hesse.errors import ArgumentError, DerivativeError, FallbackWarning, HesseError
from hesse.memory.peak import PeakMemory
from hesse.operators.algebra import LinearOperator
from hesse.risk.risk import Risk

Make = Callable[[Any, Request], Any]
"""(function, request) -> an operator that has a value."""
Layout = tuple[Any, Request]
"""The function, a risk in batches that fit, and what to ask of its operator."""


def layout(f: Any, make: Make, request: Request, budget: int, call: str) -> Layout:
    """How to take the products of make(f, request) in `budget` bytes."""
    if request.mode == "auto":  # programs need less than graphs, from the first product on
        try:
            return _layout(f, make, replace(request, mode="traced-split"), budget, call)
        except DerivativeError as error:
            request = replace(request, mode="retained-graph")
            message = f"{call}: using 'retained-graph' within the budget because {error.got}"
            warnings.warn(message, FallbackWarning, stacklevel=3)
    return _layout(f, make, request, budget, call)


def _layout(f: Any, make: Make, request: Request, budget: int, call: str) -> Layout:
    size = num_examples(f.data.first) if isinstance(f, Risk) else None
    if size is None or size < 8 or not _can_be_cut(f, make, request, size):
        need = measure(make, _apart(f), request)
        if need.first > budget:
            raise _impossible(call, budget, need.first, "where there are no batches to be cut")
        return _uncut(f, request, budget, need)
    risk: Risk = f
    first, later, residuals = _lines(
        lambda count: measure(make, _head(risk, count, size), request), size, budget
    )
    most = size if first.slope == 0.0 else math.floor((budget - first.base) / first.slope)
    if most < 1:
        raise _impossible(call, budget, math.ceil(first.at(1)), "with batches of one example")
    if most >= size:
        need = Need(first.at(size), later.at(size), residuals.at(size))
        return _uncut(risk, request, budget, need)
    fewest = math.ceil(size / most)
    lost = {n: _lost(n, size, budget, later, residuals) for n in range(fewest, 2 * fewest + 1)}
    count = _number(lost, size)
    return _cut(risk, make, request, budget, size, math.ceil(size / count), call)


def _number(lost: dict[int, float], size: int) -> int:
    """Of batches: the fewest, unless with more of them, equal if possible, clearly less is lost."""
    fewest, least = min(lost), min(lost.values())
    enough = [number for number in lost if lost[number] <= least + _CLEARLY]
    if fewest in enough:
        return fewest
    return min(enough, key=lambda number: (size % math.ceil(size / number) > 0, number))


def _lost(number: int, size: int, budget: int, later: _Line, residuals: _Line) -> float:
    """The share of so many batches whose residuals there is no room to keep."""
    count = math.ceil(size / number)
    kept = max(0.0, budget - later.at(count)) // max(1.0, residuals.at(count))
    return 1.0 - min(1.0, kept / number)


def _can_be_cut(risk: Risk, make: Make, request: Request, size: int) -> bool:
    """Whether the model takes a part of a batch; the nodes of a graph belong together."""
    try:
        _ = make(_head(risk, max(1, size // 32), size), request).value
    except (HesseError, torch.OutOfMemoryError):
        raise
    except Exception:  # whatever a model says; on the whole it says it again
        return False
    return True


def _cut(
    risk: Risk, make: Make, request: Request, budget: int, size: int, most: int, call: str
) -> Layout:
    """The risk in even batches of at most `most` examples, with the programs of the trial."""
    even = math.ceil(size / math.ceil(size / most))
    trial = _head(risk, even, size)
    need = measure(make, trial, request)
    if need.first > budget:
        if even == 1:
            raise _impossible(call, budget, need.first, "with batches of one example")
        fewer = min(even - 1, math.floor(even * budget / need.first))
        return _cut(risk, make, request, budget, size, max(1, fewer), call)
    for key, recorded in trial.preparations.items():
        risk.preparations.setdefault(key, recorded)
    keep = budget - need.first, budget - need.later
    return risk.in_small_batches(even), replace(request, keep=keep)


# Of the residuals, that must be kept for smaller batches to be worth it: a product without them
# takes a third longer.
_CLEARLY = 0.2

# What a product needs grows faster than the smallest batches show.
_CAUTION = 1.1


class Need(NamedTuple):
    """The peak, in bytes, of the first products and of one after them, and of residuals alone."""

    first: float
    later: float
    residuals: float


class _Line(NamedTuple):
    """base + slope * (examples of a batch)."""

    base: float
    slope: float

    def at(self, count: int) -> float:
        return self.base + self.slope * count


def _lines(need: Callable[[int], Need], size: int, budget: int) -> list[_Line]:
    """The lines of what is needed, about; trials keep the budget."""
    small = max(1, size // 32)
    known, other = need(small), 2 * small
    if 2 * known.first > budget + known.first // 3:  # it would not fit: a third does not grow
        other = 1
    if other == small:
        return [_Line(0.0, peak) for peak in known]
    there = need(other)
    if other < small:
        return _through(other, there, small, known)
    lines = _through(small, known, other, there)
    # What is kept and what computed again depends on the size: where the budget may be used up, the
    # lines go through a larger trial, which takes half of it.
    first = lines[0]
    if first.slope == 0.0 or first.at(size) < budget / 4:
        return lines
    large = min(size // 2, math.floor((budget / 2 - first.base) / first.slope))
    return _through(other, there, large, need(large)) if large > 2 * other else lines


def _through(one: int, here: Need, two: int, there: Need) -> list[_Line]:
    """The lines through what batches of two sizes need, for larger ones."""
    slopes = [_CAUTION * max(0.0, (b - a) / (two - one)) for a, b in zip(here, there, strict=True)]
    return [_Line(b - slope * two, slope) for b, slope in zip(there, slopes, strict=True)]


def _uncut(f: Any, request: Request, budget: int, need: Need) -> Layout:
    # The residuals of a single batch are part of what its product needs.
    one = has_one_term(f)
    keep = (math.inf, math.inf) if one else (budget - need.first, budget - need.later)
    return f, replace(request, keep=keep)


def measure(make: Make, f: Any, request: Request) -> Need:
    """What products of an operator need that holds on to no residuals."""
    with PeakMemory() as memory:
        A: LinearOperator = make(f, replace(request, keep=(0.0, 0.0)))
        v = torch.ones(A.shape[1], dtype=A.dtype, device=A.device)
        for _ in range(2):
            A.matvec(v)
        first, memory.peak = memory.peak, memory.current
        A.matvec(v)
    programs = [known.split for known in getattr(f, "preparations", {}).values()]
    residuals = max((split.residual_bytes for split in programs if split), default=0)
    # Later ones have a direction of the caller's.
    return Need(first, memory.peak - v.nbytes, residuals)


def _head(risk: Risk, count: int, size: int) -> Risk:
    """The risk of two batches of `count` examples: the second is what a first check is made on."""
    data: Batches = risk.data
    ends = sorted({0, count, min(2 * count, size), size})
    first, second, *_ = slice_batch(data.first, ends, data.weigh)
    return _apart(risk.unchecked_on([(part.inputs, part.targets) for part in (first, second)]))


def _apart(f: Any) -> Any:
    """The same function without its programs: a trial is to need what recording them takes."""
    if not isinstance(f, Risk):
        return f
    trial = copy.copy(f)
    trial.preparations = RecentlyUsed(f.preparations.limit)
    return trial


def _impossible(call: str, budget: int, need: float, how: str) -> ArgumentError:
    return ArgumentError(
        call,
        expected=f"a memory budget of at least {need:,} bytes, which a product needs {how}",
        got=f"{budget:,} bytes",
        remedy="Raise memory_budget, or reduce the number of parameters that vary.",
    )
