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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hesse.data import Batches, examples, pieces
from hesse.errors import ArgumentError, DerivativeError
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


@dataclass(frozen=True)
class Layout:
    """The risk to take products of, the mode, and how many bytes of residuals may be kept."""

    risk: Risk
    mode: Any
    keep: float


Make = Callable[[Risk, Any], LinearOperator]
"""(risk, mode) -> its operator, without a budget."""


def layout(risk: Risk, make: Make, mode: str, budget: int, call: str) -> Layout:
    """How to take the products of make(risk, mode) in `budget` bytes."""
    if mode == "auto":  # programs need less than graphs, from the first product on
        try:
            split = "traced-split"
            return _layout(risk, lambda risk: make(risk, split), split, budget, call)
        except DerivativeError:
            mode = "retained-graph"
    return _layout(risk, lambda risk: make(risk, mode), mode, budget, call)


def _layout(
    risk: Risk, make: Callable[[Risk], LinearOperator], mode: str, budget: int, call: str
) -> Layout:
    size = examples(risk.data.first)
    if size is None or size < 4:
        need = measure(make, risk)
        if need > budget:
            raise _impossible(call, budget, need, "and the data cannot be cut into smaller batches")
        return _uncut(risk, mode, budget - need)
    small = max(1, size // 32)
    first, second = (measure(make, _head(risk, count, size)) for count in (small, 2 * small))
    slope = max(0.0, (second - first) / small)
    base = first - slope * small
    most = size if slope == 0.0 else math.floor((budget - base) / slope)
    if most < 1:
        raise _impossible(call, budget, math.ceil(base + slope), "with batches of one example")
    if most >= size:
        return _uncut(risk, mode, budget - base - slope * size)
    even = math.ceil(size / math.ceil(size / most))
    return Layout(risk.in_small_batches(even), mode, budget - base - slope * even)


def _uncut(risk: Risk, mode: str, rest: float) -> Layout:
    # The residuals of a single batch are part of what its product needs.
    return Layout(risk, mode, math.inf if risk.n_terms == 1 else rest)


def measure(make: Callable[[Risk], LinearOperator], risk: Risk) -> int:
    """The peak of the first products, in bytes."""
    trial = copy.copy(risk)
    trial.preparations = {}
    A = make(trial)
    v = torch.ones(A.shape[1], dtype=A.dtype, device=A.device)
    with PeakMemory() as memory:
        for _ in range(2):
            A.matvec(v)
    return memory.peak


def _head(risk: Risk, count: int, size: int) -> Risk:
    """The risk of the first `count` examples."""
    data: Batches = risk.data
    head, _ = pieces(data.first, [0, count, size], data.weigh)
    return risk.on([(head.inputs, head.targets)])


def _impossible(call: str, budget: int, need: int, how: str) -> ArgumentError:
    return ArgumentError(
        call,
        expected=f"a memory budget of at least {need:,} bytes, which a product needs {how}",
        got=f"{budget:,} bytes",
        remedy="Raise memory_budget, or reduce the number of parameters that vary.",
    )
