# SPDX-License-Identifier: Apache-2.0
"""`memory_budget=`: how to lay out the products of a risk in a given amount of memory.

What a product needs is measured, not guessed: on two small batches cut from the data, with
everything that a first product does (tracing, checks, vectors), and once more for a later one.
What it needs on larger ones follows about by a straight line. Batches that are too large for the
budget are cut. What the budget leaves, measured on batches of the final size, is given to
residuals, which are kept from product to product as long as they fit: from the second on there is
more room for them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch

from hesse.ad.definition import Definition, Vectors
from hesse.ad.summands import as_sum, check_at
from hesse.boundary import warn
from hesse.curvature.operator import CurvatureOperator
from hesse.curvature.rank_sum import rank_sum
from hesse.curvature.shard_sum import shard_sum
from hesse.data.batches import Batches
from hesse.data.forms import BatchList
from hesse.data.slicing import num_examples, slice_batch
from hesse.data.trees import tensors
from hesse.engine.options import ProductOptions
from hesse.engine.program_cache import ProgramCache
from hesse.engine.row_layout import RowLayout
from hesse.errors import ArgumentError, DerivativeError, FallbackWarning, HesseError
from hesse.memory.peak import PeakMemory
from hesse.memory.sizes import parse_bytes
from hesse.risk.held import check_same_buffers
from hesse.risk.risk import Risk
from hesse.vectors.shards import is_sharded
from hesse.vectors.space import Space, Tree

MemoryBudget = int | float | str | None
"""A number of bytes, a text such as "4GB", "none" for no residuals between products, or None."""

Make = Callable[[Any, ProductOptions], CurvatureOperator]
"""(function, options) -> an operator that has a value."""
Layout = tuple[Any, ProductOptions]
"""The function, a risk in batches that fit, and what to ask of its operator."""


def within_budget(
    definition: Definition,
    f: Any,
    x: Tree,
    options: ProductOptions,
    budget: MemoryBudget,
    what: str = "x",
    layouts: Mapping[Vectors, RowLayout] | None = None,
    function: Callable[[Any], Any] | None = None,
) -> CurvatureOperator:
    """The operator whose products take no more memory than the budget; `what` names x.

    `layouts`: as of `CurvatureOperator`; the batches of such a function are not cut. `function`:
    from f, or f in smaller batches, to what the definition differentiates; default: f itself.

    Of a function that several ranks share it is the sum of the operators of their parts.
    """
    ranks = getattr(f, "ranks", None)
    if ranks is not None:
        check_same_buffers(ranks, getattr(f, "model", None))
        whole = f if function is None else function(f)
        shift = getattr(whole, "weight_decay", 0.0) if definition.is_sum else 0.0

        def make_here(x: Tree) -> CurvatureOperator | None:
            args = definition, f.local, x, options, budget, what, layouts, function
            return within_budget(*args) if f.local.num_summands else None

        sum_of = shard_sum if any(map(is_sharded, tensors(x))) else rank_sum
        A = sum_of(ranks, make_here, x, what, shift)
        return cast(CurvatureOperator, A)  # it has all that one calls of such an operator
    Space.of(x, what=what)

    def make(f: Any, options: ProductOptions) -> CurvatureOperator:
        check_at(f, x)
        of = f if function is None else function(f)
        return CurvatureOperator(definition, of, x, options, layouts)

    if budget is None:
        return make(f, options)
    if budget == "none":
        return make(f, replace(options, kept_bytes=(0.0, 0.0)))
    return make(*layout(f, make, replace(options, low_memory=True), parse_bytes(budget)))


def layout(f: Any, make: Make, options: ProductOptions, budget: int) -> Layout:
    """How to take the products of make(f, options) in `budget` bytes."""
    if options.mode == "auto":  # programs need less than graphs, from the first product on
        try:
            return _layout(f, make, replace(options, mode="traced-split"), budget)
        except DerivativeError as error:
            options = replace(options, mode="retained-graph")
            reason = error.got
            warn(f"using 'retained-graph' within the budget because {reason}", FallbackWarning)
    return _layout(f, make, options, budget)


def _layout(f: Any, make: Make, options: ProductOptions, budget: int) -> Layout:
    size = num_examples(f.data.first) if isinstance(f, Risk) else None
    if size is None or size < 8 or not _can_be_cut(f, make, options, size):
        need = measure(make, _apart(f), options)
        if need.first > budget:
            raise _impossible(budget, need.first, "where there are no batches to be cut")
        return _uncut(f, options, budget, need)
    risk: Risk = f
    first, later, residuals = _lines(
        lambda count: measure(make, _head(risk, count, size), options), size, budget
    )
    most = size if first.slope == 0.0 else math.floor((budget - first.base) / first.slope)
    if most < 1:
        raise _impossible(budget, math.ceil(first.at(1)), "with batches of one example")
    if most >= size:
        need = Need(first.at(size), later.at(size), residuals.at(size))
        return _uncut(risk, options, budget, need)
    fewest = math.ceil(size / most)
    lost = {n: _lost(n, size, budget, later, residuals) for n in range(fewest, 2 * fewest + 1)}
    count = _number(lost, size)
    return _cut(risk, make, options, budget, size, math.ceil(size / count))


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


def _can_be_cut(risk: Risk, make: Make, options: ProductOptions, size: int) -> bool:
    """Whether the model takes a part of a batch; the nodes of a graph belong together."""
    try:
        _ = make(_head(risk, max(1, size // 32), size), options).value
    except (HesseError, torch.OutOfMemoryError):
        raise
    except Exception:  # whatever a model says; on the whole it says it again
        return False
    return True


def _cut(
    risk: Risk, make: Make, options: ProductOptions, budget: int, size: int, most: int
) -> Layout:
    """The risk in even batches of at most `most` examples, with the programs of the trial."""
    even = math.ceil(size / math.ceil(size / most))
    trial = _head(risk, even, size)
    need = measure(make, trial, options)
    if need.first > budget:
        if even == 1:
            raise _impossible(budget, need.first, "with batches of one example")
        fewer = min(even - 1, math.floor(even * budget / need.first))
        return _cut(risk, make, options, budget, size, max(1, fewer))
    for key, traced in trial.programs.items():
        risk.programs.setdefault(key, traced)
    keep = budget - need.first, budget - need.later
    return risk.in_microbatches(even), replace(options, kept_bytes=keep)


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


def _uncut(f: Any, options: ProductOptions, budget: int, need: Need) -> Layout:
    # The residuals of a single batch are part of what its product needs.
    one = as_sum(f).num_summands == 1
    keep = (math.inf, math.inf) if one else (budget - need.first, budget - need.later)
    return f, replace(options, kept_bytes=keep)


def measure(make: Make, f: Any, options: ProductOptions) -> Need:
    """What products of an operator need that holds on to no residuals."""
    with PeakMemory() as memory:
        A = make(f, replace(options, kept_bytes=(0.0, 0.0)))
        v = torch.ones(A.shape[1], dtype=A.dtype, device=A.device)
        for _ in range(2):
            A.matvec(v)
        first, memory.peak = memory.peak, memory.current
        A.matvec(v)
    partitions = [entry.partition for entry in getattr(f, "programs", {}).values()]
    residuals = max((part.residual_bytes for part in partitions if part), default=0)
    # Later ones have a direction of the caller's.
    return Need(first, memory.peak - v.nbytes, residuals)


def _head(risk: Risk, count: int, size: int) -> Risk:
    """The risk of two batches of `count` examples: the second is what a first check is made on."""
    data: Batches = risk.data
    ends = sorted({0, count, min(2 * count, size), size})
    first, second, *_ = slice_batch(data.first, ends, data.weigh)
    parts = BatchList((part.inputs, part.targets) for part in (first, second))
    return _apart(risk.unchecked_on(parts))


def _apart(f: Any) -> Any:
    """The same function without its programs: a trial is to need what tracing them takes."""
    if not isinstance(f, Risk):
        return f
    trial = copy.copy(f)
    trial.programs = ProgramCache(f.programs.limit)
    return trial


def _impossible(budget: int, need: float, how: str) -> ArgumentError:
    return ArgumentError(
        expected=f"a memory budget of at least {need:,} bytes, which a product needs {how}",
        got=f"{budget:,} bytes",
        remedy="Raise memory_budget, or reduce the number of parameters that vary.",
    )
