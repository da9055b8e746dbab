# SPDX-License-Identifier: Apache-2.0
"""What is prepared once for all points and data of one shape, and shared between them.

A `Preparation` goes up a ladder as products are taken: it keeps the graph of the gradient at first,
which costs nothing to set up, and records the split programs when the time already spent on
products shows that they will pay. It never trusts a program blindly:

- when it is recorded, the program must repeat the product that the recording itself computed;
- at every new point, and for new data, it must repeat the value of f as f itself computes it, and
  every value that Python saw during the recording (`.item()`, the shape of `x[mask]`);
- at the 2nd, 4th, 8th, ... of these it must repeat a product taken by double backward.

A program that fails is recorded anew, and given up when that happens again and again.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hesse.ad.definition import Retained
from hesse.engine.options import Request
from hesse.engine.trace_product import Recording
from hesse.errors import FallbackWarning
from hesse.tracing.backends.inductor import seconds_to_compile
from hesse.tracing.partition import Partition
from hesse.tracing.program import Program
from hesse.tracing.vmap import directions_at_once

# Recording and building the programs takes about a millisecond for every node of the graph of f,
# and runs the product four times. It then saves three tenths of a product (between nothing and a
# half), and some 40 microseconds for every node. It is done when what could have been saved so far
# is its price, but not before its price and a quarter has gone into products. Where nothing is
# multiplied by a matrix, a product is passes over memory, of which a program takes a few: it is
# done at once if a vector is too long for the caches, or a product takes longer than the building.
_SECONDS_PER_NODE = 1e-3
_PRODUCTS = 4
_SAVED, _SAVED_PER_NODE = 0.3, 4e-5
_ENOUGH = 1.25
# Compiling is done when four times what it takes has gone into products.
_PATIENCE = 4.0
_ARITHMETIC = re.compile(r"mm|mv|dot|einsum|linear|conv|attention|lstm|gru|rnn", re.IGNORECASE)
# So many products are worth a recording whatever f is.
_MANY = 100
RECORDINGS = 4
# From so many bytes on a vector does not fit into the caches of a core.
_LONG = 1 << 21

# The program computes the value as f does, but for some roundings; it is looked at when it is off
# by more, and by so many times more than before when that was right.
_EQUAL, _MORE = 100.0, 4.0


@dataclass
class Preparation:
    """The programs for one shape of parameters and data, and what is known of their cost."""

    request: Request
    split: Partition | None = None
    given_up: str | None = None
    notes: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    spent: float = 0.0
    """Seconds that products have taken."""
    promised: float = 0.0
    """What will have been spent when the products that were announced have been taken."""
    seconds: float = 0.0
    """Of the latest product by a graph."""
    hint: int = 0
    nodes: int = 0
    multiplies: bool = True
    is_long: bool = False
    eps: float = 0.0
    value_eps: float = 0.0
    usual_error: float = 0.0
    """By which a value of the program may be off before a product is looked at."""
    recordings: int = 0
    points: int = 0
    verified: int = 0
    blocks: dict[int, Program] = field(default_factory=dict)
    compiled: Callable[..., list[Tensor]] | None = None

    @property
    def pays(self) -> bool:
        """Whether it is time to record the programs."""
        request = self.request
        if self.given_up or request.mode == "retained-graph":
            return False
        if request.mode != "auto" or request.precision != "highest" or self.hint >= _MANY:
            return True
        return self.nodes > 0 and (self.is_memory_bound or self.in_all >= self.patience)

    @property
    def is_new(self) -> bool:
        """Whether what f is made of matters, and is not known yet."""
        return self.request.mode == "auto" and not self.nodes and not self.pays

    @property
    def is_memory_bound(self) -> bool:
        """Whether a product is passes over memory, which take longer than building the programs."""
        slow = self.is_long or self.seconds > _SECONDS_PER_NODE * self.nodes
        return slow and not self.multiplies

    @property
    def rung(self) -> str:
        """How the next product is taken."""
        if self.split is None:
            return "retained-graph"
        return "traced-split" if self.compiled is None else "compiled-split"

    @property
    def compiling_pays(self) -> bool:
        """Whether it is time to compile the direction program."""
        if self.split is None or self.compiled is not None or "compiling" in self.failed:
            return False
        if self.request.mode != "auto":
            return self.request.mode == "compiled-split"
        needed = seconds_to_compile(self.split.tangents["product"])
        return self.in_all >= _PATIENCE * needed

    @property
    def in_all(self) -> float:
        """Seconds that products have taken or are sure to take."""
        return max(self.spent, self.promised)

    @property
    def patience(self) -> float:
        """Seconds of products after which programs are recorded."""
        price = _SECONDS_PER_NODE * self.nodes + _PRODUCTS * self.seconds
        saved = _SAVED + _SAVED_PER_NODE * self.nodes / max(self.seconds, 1e-9)
        return price * max(_ENOUGH, 1 / saved)

    @property
    def directions_at_once(self) -> int:
        """How many directions had better be taken together."""
        return 1 if self.split is None else directions_at_once(self.split.tangents["product"])

    def look_at(self, graph: Retained, nbytes: int) -> None:
        """See what f is made of, and of how many bytes a vector."""
        names = graph.nodes
        self.nodes, self.multiplies = len(names), any(map(_ARITHMETIC.search, names))
        self.is_long = nbytes >= _LONG

    def expect(self, seconds: float) -> None:
        """Count products that are sure to come as if they had been taken."""
        self.promised = max(self.promised, self.spent + self.hint * seconds)
        self.hint = 0

    def accept(self, new: Recording) -> None:
        """Use these programs from now on."""
        self.split, self.points = new.split, self.points + 1
        self.eps, self.value_eps = new.eps, new.value_eps
        few = _EQUAL * min(new.value_eps, torch.finfo(torch.float32).eps)
        self.usual_error = max(few, _MORE * new.value_error)
        precision, error = self.request.precision, new.error
        if precision == "highest":
            return
        found = "no units for it here; full precision"
        if error is not None:
            found = f"relative error of a product {error:.1e}, measured"
        self.notes.append(f"precision={precision!r}: {found}")

    def learn(self, error: float) -> None:
        """The value was off by this where the product was right."""
        self.usual_error = max(self.usual_error, _MORE * error)

    def give_up(self, reason: str) -> None:
        """Keep graphs from now on."""
        self.split, self.compiled, self.given_up = None, None, reason
        self.notes.append(f"traced-split given up: {reason}")
        if self.request.precision != "highest":
            warnings.warn(
                f"precision={self.request.precision!r} has no effect, since products cannot be "
                f"recorded: {reason}",
                FallbackWarning,
                stacklevel=2,
            )

    def distrust(self, reason: str) -> None:
        """Throw the programs away; they may be recorded anew a few times."""
        self.split, self.compiled, self.blocks = None, None, {}
        self.notes.append(f"recorded anew: {reason}")
        if self.recordings >= RECORDINGS:
            self.give_up(f"{reason}, after {self.recordings} recordings")
