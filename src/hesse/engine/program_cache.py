# SPDX-License-Identifier: Apache-2.0
"""`ProgramCache`: the programs of products, for every shape of variables and data.

An entry is what points of one shape share: the partition of their traced product, the `Validator`
that says whether it is right, and the `Usage` by which the cost model decides.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hesse.boundary import warn
from hesse.engine.cost_model import AsAskedFor, CostModel, Usage
from hesse.engine.options import ProductOptions
from hesse.engine.point import Point
from hesse.engine.validator import Validator
from hesse.errors import FallbackWarning
from hesse.tracing.backends.inductor import seconds_to_compile
from hesse.tracing.partition import Partition
from hesse.tracing.program import Program


@dataclass
class CachedProgram:
    """The programs of one shape, and what was learnt about them."""

    options: ProductOptions
    validator: Validator = field(default_factory=Validator)
    usage: Usage = field(default_factory=Usage)
    partition: Partition | None = None
    num_outputs: int = 1
    """Of the outputs of the primal program, those of f; the gradient follows."""
    primal_and_outputs: Program | None = None
    """The primal program with the outputs of f, which tell whether it is right, and no gradient."""
    compiled: Callable[..., list[Tensor]] | None = None
    """The tangent program of the product."""
    blocks: dict[int, Program] = field(default_factory=dict)
    """The tangent program of the product, for so many directions at once."""
    disabled: str | None = None
    """Why there will be no programs."""
    failures: dict[str, str] = field(default_factory=dict)
    """What was tried for good, and why it failed."""
    notes: list[str] = field(default_factory=list)
    cost_model: CostModel = field(init=False)
    """That of the options, unless these say themselves whether to trace."""

    def __post_init__(self) -> None:
        options, self.cost_model = self.options, self.options.cost_model
        if options.mode == "retained-graph":
            self.cost_model = AsAskedFor(traces=False)
        elif options.mode != "auto" or options.precision != "highest":
            self.cost_model = AsAskedFor(traces=True)

    @property
    def mode(self) -> str:
        """How the next product is taken."""
        if self.partition is None:
            return "retained-graph"
        return "traced-split" if self.compiled is None else "compiled-split"

    def install(self, partition: Partition, num_outputs: int) -> None:
        """Use these programs from now on."""
        self.partition, self.num_outputs = partition, num_outputs
        self.primal_and_outputs = partition.without_gradient(num_outputs)
        if "compiling" not in self.failures:
            self.usage.compile_after = self.compile_after(partition.tangents["product"])

    def compile_after(self, program: Program) -> float:
        """Seconds of runs after which compiling a program pays."""
        if self.options.mode == "auto":
            return self.options.cost_model.compile_after(seconds_to_compile(program))
        return 0.0 if self.options.mode == "compiled-split" else math.inf

    def invalidate(self, reason: str) -> None:
        """Throw the programs away; they may be traced again a few times."""
        self.partition, self.compiled, self.blocks = None, None, {}
        self.notes.append(f"traced again: {reason}")
        if not self.validator.may_trace:
            self.disable(f"{reason}, after {self.validator.num_traces} traces")

    def disable(self, reason: str) -> None:
        """Retain graphs from now on."""
        self.partition, self.compiled, self.disabled = None, None, reason
        self.cost_model = AsAskedFor(traces=False)
        self.notes.append(f"traced-split disabled: {reason}")
        if self.options.precision != "highest":
            warn(
                f"precision={self.options.precision!r} has no effect, since products cannot be "
                f"traced: {reason}",
                FallbackWarning,
            )


class ProgramCache(OrderedDict):
    """At most `limit` entries, of which the least recently used goes first.

    A deep copy or a pickle is empty: programs are made again where they are wanted. Who takes
    products by the programs holds the lock `in_use`: what is learnt from one belongs to all.

    >>> cache = ProgramCache(2)
    >>> [cache.setdefault(key, key) for key in "abac"], list(cache)
    (['a', 'b', 'a', 'c'], ['a', 'c'])
    """

    def __init__(self, limit: int = 16) -> None:
        super().__init__()
        self.limit = limit
        self._lock = threading.Lock()
        self.in_use = threading.RLock()

    def __reduce__(self):
        return type(self), (self.limit,)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        with self._lock:
            value = super().setdefault(key, default)
            self.move_to_end(key)
            while len(self) > self.limit:
                self.popitem(last=False)
        return value

    def entry(self, point: Point, key: Hashable, options: ProductOptions) -> CachedProgram:
        """The programs for points of this shape, whose functions are told apart by `key`."""
        asked = options.mode, options.precision, options.low_memory, options.cost_model
        whole = asked, point.key(), key
        with self._lock:
            known = self.get(whole)
            if known is not None:
                self.move_to_end(whole)
                return known
        return self.setdefault(whole, CachedProgram(options))
