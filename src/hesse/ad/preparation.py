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

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from hesse.ad.batched import batched, directions_at_once
from hesse.ad.evaluate import Leaves, run_deterministic
from hesse.ad.program import Program, simplify
from hesse.ad.split import Split, split
from hesse.ad.tape import UntraceableError, record
from hesse.vectors import norm

# Recording and building the programs takes some 1.5 ms for every node of the graph of f. It is
# done when four times as long has gone into products, so that it never costs more than a quarter.
_SECONDS_PER_NODE = 1.5e-3
_PATIENCE = 4.0
# So many products are worth a recording whatever f is.
_MANY = 100
_RECORDINGS = 4


class Retained(Protocol):
    """A product at a point by the graph of its derivatives: what a program must agree with."""

    @property
    def value(self) -> Tensor: ...
    @property
    def gradient(self) -> list[Tensor]: ...
    @property
    def custom(self) -> str | None:
        """The name of a user's `autograd.Function` in f, if there is one."""
        ...

    @property
    def nodes(self) -> int:
        """The size of the graph of f."""
        ...

    def product(self, v: Leaves) -> list[Tensor]: ...


class Kind(Protocol):
    """Which product it is: the Hessian, the Gauss-Newton matrix."""

    @property
    def call(self) -> str: ...
    @property
    def quantities(self) -> tuple[str, ...]:
        """Methods of the retained form that take a direction: "product", perhaps "curvature"."""
        ...

    def value(self, function: Any, x: Leaves) -> Tensor:
        """f(x) as f computes it."""
        ...

    def retain(self, function: Any, x: Leaves) -> Retained:
        """The product at x."""
        ...


@dataclass
class Preparation:
    """The programs for one shape of parameters and data, and what is known of their cost."""

    mode: str
    split: Split | None = None
    given_up: str | None = None
    notes: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    spent: float = 0.0
    hint: int = 0
    nodes: int = 0
    recordings: int = 0
    points: int = 0
    verified: int = 0
    blocks: dict[int, Program] = field(default_factory=dict)

    @property
    def pays(self) -> bool:
        """Whether it is time to record the programs."""
        if self.given_up or self.mode == "retained-graph":
            return False
        if self.mode == "traced-split" or self.hint >= _MANY:
            return True
        return self.nodes > 0 and self.spent >= self.patience

    @property
    def patience(self) -> float:
        """Seconds of products after which programs are recorded."""
        return _PATIENCE * _SECONDS_PER_NODE * self.nodes

    @property
    def directions_at_once(self) -> int:
        """How many directions had better be taken together."""
        return 1 if self.split is None else directions_at_once(self.split.directions["product"])

    def expect(self, seconds: float) -> None:
        """Count products that are sure to come as if they had been taken."""
        self.spent += self.hint * seconds
        self.hint = 0

    def give_up(self, reason: str) -> None:
        """Keep graphs from now on."""
        self.split, self.given_up = None, reason
        self.notes.append(f"traced-split given up: {reason}")

    def distrust(self, reason: str) -> None:
        """Throw the programs away; they may be recorded anew a few times."""
        self.split, self.blocks = None, {}
        self.notes.append(f"recorded anew: {reason}")
        if self.recordings >= _RECORDINGS:
            self.give_up(f"{reason}, after {self.recordings} recordings")


class TermAt:
    """One term of f at one point: its value, gradient and products by the best rung there is."""

    def __init__(
        self,
        kind: Kind,
        function: Any,
        x: list[Tensor],
        data: Sequence[Tensor],
        preparation: Preparation,
        trusted: Split | None = None,
    ) -> None:
        self._kind, self._function, self._x = kind, function, x
        self._data, self.preparation = list(data), preparation
        self.trusted = trusted
        self._graph: Retained | None = None
        self._value: Tensor | None = None
        self._gradient: list[Tensor] | None = None
        self._residuals: list[Tensor] | None = None

    @property
    def value(self) -> Tensor:
        """f(x)."""
        if self._value is None:
            split = self.preparation.split
            by_f = self._graph is None and split is not None
            self._value = self._kind.value(self._function, self._x) if by_f else self.graph.value
        return self._value

    @property
    def gradient(self) -> list[Tensor]:
        """grad f(x)."""
        if self._gradient is None and self._graph is None and self.preparation.split is not None:
            self._enter()
        return self.graph.gradient if self._gradient is None else self._gradient

    @property
    def custom(self) -> str | None:
        """A custom function in f, which the last product must be checked for."""
        return None if self._graph is None else self._graph.custom

    @property
    def graph(self) -> Retained:
        """The retained form at this point."""
        if self._graph is None:
            self._graph = run_deterministic(
                lambda: self._kind.retain(self._function, self._x), self._kind.call
            )
        return self._graph

    @property
    def rung(self) -> str:
        """How the next product is taken."""
        return "retained-graph" if self.preparation.split is None else "traced-split"

    def apply(self, quantity: str, v: list[Tensor]) -> list[Tensor]:
        """The product, or another quantity, in the direction v."""
        preparation = self.preparation
        for _ in range(_RECORDINGS):
            if preparation.split is None:
                if not preparation.pays:
                    break
                self._record(v)
            elif self._residuals is None:
                self._enter()
            if preparation.split is not None and self._residuals is not None:
                return run(preparation.split.directions[quantity], [*self._residuals, *v])
        if preparation.mode == "traced-split":
            raise UntraceableError(f"it cannot be recorded: {preparation.notes[-1]}")
        return self._by_graph(quantity, v)

    @property
    def directions_at_once(self) -> int:
        """How many directions `apply_block` had better be given; 1: none, take `apply`."""
        return self.preparation.directions_at_once

    def apply_block(self, blocks: list[Tensor]) -> list[Tensor] | None:
        """The products with k directions, shape (k, ...) each; None where that does not work."""
        preparation, k = self.preparation, len(blocks[0])
        if preparation.split is not None and self._residuals is None:
            self._enter()
        if preparation.split is None or self._residuals is None or "block" in preparation.failed:
            return None
        if k not in preparation.blocks:
            try:
                self._record_block(blocks)
            except RuntimeError as error:
                preparation.failed["block"] = str(error).strip().splitlines()[0]
                return None
        return run(preparation.blocks[k], [*self._residuals, *blocks])

    def _record_block(self, blocks: list[Tensor]) -> None:
        preparation, residuals = self.preparation, self._residuals
        assert preparation.split is not None and residuals is not None
        single = preparation.split.directions["product"]
        with torch.no_grad():
            program = batched(single, residuals, blocks)
        first = run(single, [*residuals, *(block[0].contiguous() for block in blocks)])
        if not _agree([part[0] for part in run(program, [*residuals, *blocks])], first):
            raise UntraceableError("a block gives another product than its first direction alone")
        preparation.blocks[len(blocks[0])] = program

    def _by_graph(self, quantity: str, v: list[Tensor]) -> list[Tensor]:
        preparation, start = self.preparation, time.perf_counter()
        result = _listed(getattr(self.graph, quantity)(v))
        if not preparation.nodes:
            preparation.nodes = self.graph.nodes
        elif not preparation.given_up:
            seconds = time.perf_counter() - start
            preparation.spent += seconds
            preparation.expect(seconds)
        return result

    def _enter(self) -> None:
        """Run the point program at this point, and check it."""
        preparation = self.preparation
        if preparation.split is None:
            return
        if self.trusted is preparation.split:
            self._residuals = run(preparation.split.point, [*self._x, *self._data])
            return
        value = self.value
        n = 1 + len(self._x)
        try:
            results = run(preparation.split.point_and_gradient, [*self._x, *self._data])
        except RuntimeError as error:  # a guard, or a shape that has changed
            preparation.distrust(str(error).strip().splitlines()[0])
            return
        preparation.points += 1
        if not _agree([results[0]], [value]):
            preparation.distrust("the value of f is not that of the program")
            return
        self._gradient, self._residuals = results[1:n], results[n:]
        if preparation.points > 1 and preparation.points & (preparation.points - 1) == 0:
            self._verify()
        self.trusted = preparation.split

    def _verify(self) -> None:
        """Compare a product with one by double backward."""
        preparation = self.preparation
        assert preparation.split is not None and self._residuals is not None
        generator = torch.Generator().manual_seed(preparation.points)
        v = [torch.randn(p.shape, generator=generator).to(p) for p in self._x]
        ours = run(preparation.split.directions["product"], [*self._residuals, *v])
        if not _agree(ours, self._kind.retain(self._function, self._x).product(v)):
            self._residuals = self._gradient = None
            preparation.distrust("a product is not that of double backward")
        preparation.verified += 1

    def _record(self, v: list[Tensor]) -> None:
        """Record the programs at this point, and check that they repeat what was recorded."""
        preparation, kind = self.preparation, self._kind
        preparation.recordings += 1
        n, sizes, seen = len(self._x), {}, {}

        def everything() -> list[Tensor]:
            graph = kind.retain(self._function, self._x)
            if graph.custom is not None:
                raise UntraceableError(f"the custom function {graph.custom} is foreign to it")
            outputs = [graph.value, *graph.gradient]
            for quantity in kind.quantities:
                part = _listed(getattr(graph, quantity)(v))
                sizes[quantity], seen[quantity] = len(part), part
                outputs += part
            return outputs

        try:
            trace = simplify(record(everything, [*self._x, *self._data, *v]))
            products, first = {}, 1 + n
            for quantity, size in sizes.items():
                products[quantity] = trace.outputs[first : first + size]
                first += size
            result = split(trace, trace.inputs[-n:], trace.outputs[: 1 + n], products)
            point = run(result.point_and_gradient, [*self._x, *self._data])
            again = run(result.directions["product"], [*point[1 + n :], *v])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            preparation.give_up(str(error).strip().splitlines()[0])
            return
        if not _agree(again, seen["product"]):
            preparation.give_up("the program does not repeat the product that was recorded")
            return
        preparation.split, self._graph = result, None
        self._value, self._gradient, self._residuals = point[0], point[1 : 1 + n], point[1 + n :]
        preparation.points += 1
        self.trusted = result


def run(program: Program, tensors: list[Tensor]) -> list[Tensor]:
    """The outputs of a program, without a graph."""
    with torch.inference_mode(False), torch.no_grad():
        return program(*tensors)


def _listed(result: Tensor | list[Tensor]) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def _agree(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Whether two results are the same up to rounding; NaN is NaN."""
    a = torch.cat([part.detach().reshape(-1) for part in ours])
    b = torch.cat([part.detach().reshape(-1) for part in theirs])
    eps = max(torch.finfo(part.dtype).eps for part in ours)
    if not bool(torch.isfinite(b).all()):
        return bool((torch.isfinite(a) == torch.isfinite(b)).all())
    return norm(a - b) <= eps**0.5 * (norm(a) + norm(b))
