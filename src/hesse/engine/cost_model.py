# SPDX-License-Identifier: Apache-2.0
"""`CostModel`: when does it pay to trace a product, and to compile the trace?

A cost model is a pure function of what has been used so far (`Usage`). The default one weighs
measured seconds. `CountedCost` looks at counts only, so that processes that must decide alike do,
and a run can be repeated to the bit; it is used within `hesse.deterministic()`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from hesse.engine.machine_speed import slowness

_ARITHMETIC = re.compile(r"mm|mv|dot|einsum|linear|conv|attention|lstm|gru|rnn", re.IGNORECASE)

# A vector of so many bytes does not fit into the caches of a core.
_LONG = 1 << 21

# So many announced products are worth a trace whatever f is.
_MANY = 100


@dataclass
class Usage:
    """What the products of one shape have taken: counts and seconds."""

    num_products: int = 0
    announced: int = 0
    """Products that will follow."""
    seconds: float = 0.0
    """All products so far."""
    announced_seconds: float = 0.0
    """`seconds` when the products that were announced have been taken."""
    graph_seconds: float = 0.0
    """The latest product by a retained graph."""
    num_nodes: int = 0
    """Nodes of the graph of f; 0 while they are not known."""
    graph_bytes: float | None = None
    """What a retained graph holds, where that has been asked for."""
    multiplies: bool = True
    """Whether f has a matrix product or a convolution."""
    is_long: bool = False
    """Whether a vector exceeds the caches."""
    compile_after: float = math.inf
    """Seconds of products after which compiling the program of a product pays."""

    @property
    def total_seconds(self) -> float:
        """Seconds that products have taken or are sure to take."""
        return max(self.seconds, self.announced_seconds)

    @property
    def should_compile(self) -> bool:
        """Whether compiling the program of a product pays by now."""
        return self.total_seconds >= self.compile_after

    def inspect(self, node_names: Sequence[str], vector_bytes: int) -> None:
        """See what f is made of."""
        self.num_nodes = len(node_names)
        self.multiplies = any(map(_ARITHMETIC.search, node_names))
        self.is_long = vector_bytes >= _LONG

    def announce(self, products: int) -> None:
        """So many products will follow."""
        self.announced = max(self.announced, products)

    def add_program_product(self, seconds: float) -> None:
        """A product by a program was taken."""
        self.num_products += 1
        self.seconds += seconds

    def add_graph_product(self, seconds: float, *, traceable: bool) -> None:
        """A product by a graph was taken; the first one, which took the gradient too, is free."""
        self.num_products += 1
        is_first, self.graph_seconds = not self.graph_seconds, seconds
        if not is_first and traceable:
            self.seconds += seconds
            promised = self.seconds + self.announced * seconds
            self.announced_seconds = max(self.announced_seconds, promised)
            self.announced = 0


class CostModel(Protocol):
    """When to trace and when to compile, as pure functions of the usage."""

    @property
    def measures(self) -> bool:
        """Whether decisions may depend on a clock."""
        ...

    def should_trace(self, usage: Usage) -> bool:
        """Whether tracing pays by now."""
        ...

    def compile_after(self, seconds: float) -> float:
        """Seconds of products after which it pays to compile a program in so many seconds."""
        ...

    def break_even(self, usage: Usage) -> str:
        """In words, when tracing will pay."""
        ...


@dataclass(frozen=True)
class MeasuredCost:
    """Decide by seconds.

    Tracing takes about a millisecond for every node of the graph of f, and runs the product four
    times. It then saves three tenths of a product (between nothing and a half), and some 40
    microseconds for every node. It pays when what could have been saved so far is its price, but
    not before its price and a quarter has gone into products. Where nothing is multiplied by a
    matrix, a product is passes over memory, of which a program takes a few: tracing pays with the
    second product if a vector exceeds the caches, or a product takes longer than the trace.
    Compiling pays when four times what it takes has gone into products.

    Both prices of a node are time in Python, as measured on one machine; they are scaled by the
    `slowness` of this one.
    """

    slowness: float = 1.0
    seconds_per_node: float = 1e-3
    products_per_trace: float = 4.0
    saved_fraction: float = 0.3
    saved_per_node: float = 4e-5
    caution: float = 1.25
    compile_caution: float = 4.0

    @property
    def measures(self) -> bool:
        return True

    def should_trace(self, usage: Usage) -> bool:
        if usage.announced >= _MANY:
            return True
        if not usage.num_nodes:
            return False
        return self._is_memory_bound(usage) or usage.total_seconds >= self._break_even(usage)

    def compile_after(self, seconds: float) -> float:
        return self.compile_caution * seconds

    def break_even(self, usage: Usage) -> str:
        return (
            f"until products have taken {self._break_even(usage):.2g} s ({usage.seconds:.2g} s so "
            "far), when tracing will pay"
        )

    def _break_even(self, usage: Usage) -> float:
        """Seconds of products after which tracing pays."""
        nodes = self.slowness * usage.num_nodes
        price = self.seconds_per_node * nodes + self.products_per_trace * usage.graph_seconds
        saved = self.saved_fraction
        saved += self.saved_per_node * nodes / max(usage.graph_seconds, 1e-9)
        return price * max(self.caution, 1 / saved)

    def _is_memory_bound(self, usage: Usage) -> bool:
        """Whether products are passes over memory that take longer than building the programs."""
        slow = usage.graph_seconds > self.seconds_per_node * self.slowness * usage.num_nodes
        return usage.num_products > 0 and (usage.is_long or slow) and not usage.multiplies


@dataclass(frozen=True)
class CountedCost:
    """Decide by the number of products: trace for the third one, never compile."""

    products_before_trace: int = 2

    @property
    def measures(self) -> bool:
        return False

    def should_trace(self, usage: Usage) -> bool:
        return usage.num_products + usage.announced >= self.products_before_trace

    def compile_after(self, seconds: float) -> float:
        return math.inf

    def break_even(self, usage: Usage) -> str:
        return f"until {self.products_before_trace} products have been taken"


@dataclass(frozen=True)
class AsAskedFor:
    """What the mode says that was asked for: trace at once, or never."""

    traces: bool

    @property
    def measures(self) -> bool:
        return False

    def should_trace(self, usage: Usage) -> bool:
        return self.traces

    def compile_after(self, seconds: float) -> float:
        return math.inf

    def break_even(self, usage: Usage) -> str:
        return "as asked for"


_current: ContextVar[CostModel | None] = ContextVar("hesse_cost_model", default=None)


def current_cost_model() -> CostModel:
    """The cost model of operators that are made now."""
    return _current.get() or MeasuredCost(slowness=slowness())


@contextmanager
def deterministic() -> Iterator[None]:
    """Within it, operators are made that decide by counts and never by a clock.

    By default `auto` mode traces and compiles a product when measured seconds show that it pays,
    and large matrix products take the kernel that is measured to be the faster one. Another run may
    decide otherwise, at another product, and round differently. An operator made inside this
    context takes the same decisions in every run and in every process.

    Cost: none at once; programs are not compiled, and kernels not compared.

    >>> with deterministic():
    ...     current_cost_model().measures
    False
    """
    token = _current.set(CountedCost())
    try:
        yield
    finally:
        _current.reset(token)
