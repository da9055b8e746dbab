# SPDX-License-Identifier: Apache-2.0
"""`memory_budget=`: how to lay out the products of a risk in a given amount of memory.

What a product needs is measured, not guessed: on two small batches cut from the data, with
everything that a first product does (recording, checks, vectors). What it needs on larger ones
follows by a straight line. Batches that are too large for the budget are cut; what the budget
leaves is given to residuals, which are kept from product to product as long as they fit.
"""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from hesse.ad.request import Request
from hesse.ad.terms import has_one_term
from hesse.data import Batches, examples, pieces
from hesse.errors import ArgumentError, DerivativeError, FallbackWarning
from hesse.memory import PeakMemory
from hesse.operators.base import LinearOperator
from hesse.risk import Risk

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse_bytes(budget: int | float | str, call: str) -> int:
    """The number of bytes: a number, or a text such as "4GB" or "500 MiB".

    >>> parse_bytes("1.5 GB", "f"), parse_bytes("2KiB", "f"), parse_bytes(7, "f")
    (1500000000, 2048, 7)
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([a-z]*)\s*", str(budget).lower())
    try:
        assert match is not None
        size = int(float(match[1]) * _UNITS[match[2]])
    except (AssertionError, KeyError, ValueError):
        size = 0
    if size > 0:
        return size
    raise ArgumentError(
        call,
        expected='memory_budget as a number of bytes or a text such as "4GB", "500MiB"',
        got=repr(budget),
        remedy="Leave it out to keep what belongs to a single batch and nothing of several.",
    )


Make = Callable[[Any, Request], LinearOperator]
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
    size = examples(f.data.first) if isinstance(f, Risk) else None
    if size is None or size < 8:
        need = measure(make, f, request)
        if need > budget:
            raise _impossible(call, budget, need, "where there are no batches to be cut")
        return _uncut(f, request, budget - need)
    risk: Risk = f
    base, slope = _line(
        lambda count: measure(make, _head(risk, count, size), request), size, budget
    )
    most = size if slope == 0.0 else math.floor((budget - base) / slope)
    if most < 1:
        raise _impossible(call, budget, math.ceil(base + slope), "with batches of one example")
    if most >= size:
        return _uncut(risk, request, budget - base - slope * size)
    even = math.ceil(size / math.ceil(size / most))
    return risk.in_small_batches(even), replace(request, keep=budget - base - slope * even)


def _line(need: Callable[[int], int], size: int, budget: int) -> tuple[float, float]:
    """What products need is about base + slope * (examples of a batch); trials keep the budget."""
    small = max(1, size // 32)
    first, other = need(small), 2 * small
    if 2 * first > budget + first // 3:  # it would not fit: a third or so does not grow
        other = 1
    if other == small:
        return 0.0, float(first)
    slope = max(0.0, (need(other) - first) / (other - small))
    return first - slope * small, slope


def _uncut(f: Any, request: Request, rest: float) -> Layout:
    # The residuals of a single batch are part of what its product needs.
    return f, replace(request, keep=math.inf if has_one_term(f) else rest)


def measure(make: Make, f: Any, request: Request) -> int:
    """The peak of the first products, in bytes."""
    trial = f
    if isinstance(f, Risk):
        trial = copy.copy(f)
        trial.preparations = {}
    with PeakMemory() as memory:
        A = make(trial, replace(request, keep=0.0))
        v = torch.ones(A.shape[1], dtype=A.dtype, device=A.device)
        memory.current -= v.nbytes  # the caller's
        for _ in range(2):
            A.matvec(v)
    return memory.peak


def _head(risk: Risk, count: int, size: int) -> Risk:
    """The risk of two batches of `count` examples: the second is what a first check is made on."""
    data: Batches = risk.data
    first, second, _ = pieces(data.first, [0, count, 2 * count, size], data.weigh)
    return risk.on([(part.inputs, part.targets) for part in (first, second)])


def _impossible(call: str, budget: int, need: int, how: str) -> ArgumentError:
    return ArgumentError(
        call,
        expected=f"a memory budget of at least {need:,} bytes, which a product needs {how}",
        got=f"{budget:,} bytes",
        remedy="Raise memory_budget, or reduce the number of parameters that vary.",
    )
