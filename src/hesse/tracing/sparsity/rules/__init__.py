# SPDX-License-Identifier: Apache-2.0
"""The rules: the patterns of the results of a node from those of its arguments, by kind of node.

A rule is a function (node, tape) -> the patterns of the results, in their order, with None for a
result that does not depend on the direction; or None if it does not know the operation. The first
rule that knows an operation decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hesse.tracing.graph import Node
from hesse.tracing.sparsity.patterns import Pattern
from hesse.tracing.sparsity.rules import (
    complex_numbers,
    convolution,
    indexing,
    losses,
    matmul,
    mixtures,
    pointwise,
    reductions,
    scatter,
    separable,
)
from hesse.tracing.sparsity.tape import Tape

Rule = Callable[[Node, Tape], Sequence[Pattern | None] | None]

RULES: tuple[Rule, ...] = (
    indexing.patterns,
    reductions.patterns,
    scatter.patterns,
    convolution.patterns,
    matmul.patterns,
    separable.patterns,
    complex_numbers.patterns,
    losses.patterns,
    mixtures.patterns,
    pointwise.patterns,
)
