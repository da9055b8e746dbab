# SPDX-License-Identifier: Apache-2.0
"""One term of f at one point: its value, gradient and products by the best rung there is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hesse.ad.definition import Kind, Retained
from hesse.ad.determinism import check_same, run_deterministic
from hesse.ad.variables import Variables
from hesse.engine.closeness import agree, difference, rounding
from hesse.engine.data_version import Versions, versions
from hesse.engine.preparation import RECORDINGS, Preparation
from hesse.engine.trace_product import record_programs, taken
from hesse.errors import DerivativeError, HesseError
from hesse.tracing.backends.inductor import can_compile, compile_program
from hesse.tracing.graph import UntraceableError
from hesse.tracing.partition import Partition
from hesse.tracing.precision import units
from hesse.tracing.program import run
from hesse.tracing.vmap import batched

# What torch says of a tensor that a graph needs and that was changed in place.
_WRITTEN_TO = "modified by an inplace operation"

# Directions are taken together if that takes at most this share of the time one by one.
_SAVES = 0.95


class TermAt:
    """See the module; `preparation` is shared with other points and terms, the rest is of here."""

    def __init__(
        self,
        kind: Kind,
        function: Any,
        variables: Variables,
        data: Sequence[Tensor],
        preparation: Preparation,
        trusted: Partition | None = None,
        *,
        alone: bool = True,
    ) -> None:
        self._kind, self._function = kind, function
        self._variables, self._x = variables, list(variables.x)
        self._data, self.preparation = list(data), preparation
        self.trusted = trusted
        self._graph: Retained | None = None
        self._value: Tensor | None = None
        self._gradient: list[Tensor] | None = None
        self._residuals: list[Tensor] | None = None
        # Whose residuals they are: another point may meanwhile have had the programs recorded anew.
        self._split: Partition | None = None
        self._versions = versions(self._data)
        self._alone, self._products = alone, 0
        self.makes_products = False
        """Whether the last product is made of tensors of its own, which may be given away."""

    @property
    def value(self) -> Tensor:
        """f(x)."""
        self._look_at_data()
        if self._value is None:
            split = self.preparation.split
            by_f = self._graph is None and split is not None
            self._value = self._kind.value(self._function, self._x) if by_f else self.graph.value
        return self._value

    def take_gradient(self) -> list[Tensor]:
        """grad f(x), which is not held on to: it comes with the residuals, and is the caller's."""
        self._look_at_data()
        if self._gradient is None and self._graph is None and self.preparation.split is not None:
            self._enter(with_gradient=True)
        gradient, self._gradient = self._gradient, None
        return self.graph.gradient if gradient is None else gradient

    @property
    def custom(self) -> str | None:
        """A custom function in f, which the last product must be checked for."""
        return None if self._graph is None else self._graph.custom

    @property
    def graph(self) -> Retained:
        """The retained form at this point."""
        if self._graph is None:
            self._graph = run_deterministic(
                lambda: self._kind.retain(self._function, self._x),
                self._kind.call,
                again=self.preparation.nodes > 0,
            )
            self._graph.check()
        return self._graph

    @property
    def kept_bytes(self) -> int | None:
        """What holding on to this point costs; None while that is not known."""
        return None if self._split is None else self._split.residual_bytes

    @property
    def rung(self) -> str:
        """How the next product is taken."""
        return self.preparation.rung

    def apply(self, quantity: str, v: Tensor) -> Tensor:
        """The product, its leaves joined, or another quantity in the direction v, a flat vector."""
        preparation = self.preparation
        self._look_at_data()
        for _ in range(RECORDINGS):
            if self._residuals is None and preparation.split is not None:
                self._enter(v)
            elif self._residuals is None:
                if preparation.is_new:
                    self._look_at_function()
                if not preparation.pays:
                    break
                product = self._record(v)
                if quantity == "product" and not preparation.compiling_pays and product is not None:
                    return product
            if self._residuals is not None:
                return self._by_program(quantity, [*self._residuals, v])
        if preparation.request.mode in ("traced-split", "compiled-split"):
            raise self._refuse(preparation.notes[-1])
        return self._by_graph(quantity, v)

    def _look_at_function(self) -> None:
        """See what f is made of; the graph of its value makes room for a recording."""
        self.preparation.look_at(self.graph, self._variables.nbytes)
        if self.preparation.pays:
            self._value, self._graph = self.graph.value, None

    def _hold(self, residuals: list[Tensor], split: Partition) -> None:
        self._residuals, self._split = residuals, split
        self._versions = self._versions_now()

    def _look_at_data(self) -> None:
        """Forget what was computed here if data, or what f closes over, was written to since."""
        if self._versions != self._versions_now():
            self._graph = self._value = self._gradient = None
            self._residuals = self._split = self.trusted = None
            self._versions = self._versions_now()

    def _versions_now(self) -> Versions:
        constants = [] if self._split is None else self._split.constants
        return versions([*self._data, *constants])

    def _by_program(self, quantity: str, tensors: list[Tensor]) -> Tensor:
        preparation = self.preparation
        assert self._split is not None
        program, start = self._split.tangents[quantity], time.perf_counter()
        self.makes_products = program.makes_outputs
        current = self._split is preparation.split
        self._products += 1
        if self._products > 1 or not self._alone:  # who wants the gradient asks for it early
            self._gradient = None
        if current and preparation.compiling_pays:
            self._compile(tensors)
        compiled = preparation.compiled if current and quantity == "product" else None
        with units(preparation.request.precision):
            (result,) = run(compiled or program, tensors)
        preparation.spent += time.perf_counter() - start
        return result

    def _refuse(self, reason: str) -> DerivativeError:
        return DerivativeError(
            self._kind.call,
            expected=f"an f whose products can be taken in mode {self.preparation.request.mode!r}",
            got=reason,
            remedy="Use mode='auto', which takes another way where this one does not work.",
        )

    def _compile(self, tensors: list[Tensor]) -> None:
        """Compile the program of the product; keep it if it is right and, under "auto", faster."""
        preparation = self.preparation
        assert preparation.split is not None
        program = preparation.split.tangents["product"]
        try:
            if not can_compile(tensors[0].device):
                raise RuntimeError("there is no C++ compiler on this machine")
            compiled = compile_program(program, tensors)
            if not agree(run(compiled, tensors), run(program, tensors), preparation.eps):
                raise RuntimeError("the compiled program gives another product")
            ours, theirs = _seconds(compiled, tensors), _seconds(program, tensors)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            preparation.failed["compiling"] = reason
            preparation.notes.append(f"compiled-split: {reason}")
            if preparation.request.mode == "compiled-split":
                raise self._refuse(reason) from error
            return
        note = f"compiled, a product takes {ours / theirs:.2f} of the time it took before"
        preparation.notes.append(note)
        if ours < theirs or preparation.request.mode == "compiled-split":
            preparation.compiled = compiled
        else:
            preparation.failed["compiling"] = note

    @property
    def directions_at_once(self) -> int:
        """How many directions `apply_block` had better be given; 1: none, take `apply`."""
        return self.preparation.directions_at_once

    def apply_block(self, block: Tensor) -> Tensor | None:
        """The products with the k rows, as rows; None where that does not work."""
        preparation, k = self.preparation, len(block)
        self._look_at_data()
        if preparation.split is not None and self._residuals is None:
            self._enter()
        current = self._split is not None and self._split is preparation.split
        failure = f"a block of {k}"
        if not current or self._residuals is None or failure in preparation.failed:
            return None
        if k not in preparation.blocks:
            try:
                self._record_block(block)
            except RuntimeError as error:
                preparation.failed[failure] = str(error).strip().splitlines()[0]
                preparation.notes.append(f"{failure}: {preparation.failed[failure]}")
                return None
        with units(preparation.request.precision):
            return run(preparation.blocks[k], [*self._residuals, block])[0]

    def _record_block(self, block: Tensor) -> None:
        preparation, residuals = self.preparation, self._residuals
        assert preparation.split is not None and residuals is not None
        single = preparation.split.tangents["product"]
        with torch.no_grad():
            program = batched(single, residuals, block)
        k = len(block)
        mix = torch.linspace(1.0, 2.0, k, dtype=block.dtype, device=block.device)
        alone, together = [*residuals, mix @ block], [*residuals, block]
        ours = [mix @ part for part in run(program, together)]
        if not agree(ours, run(single, alone), preparation.eps):
            raise UntraceableError("a block gives other products than its directions alone")
        fastest = single if preparation.compiled is None else preparation.compiled
        pairs = [(_seconds(program, together, 1), _seconds(fastest, alone, 1)) for _ in range(3)]
        at_once, one_by_one = map(min, zip(*pairs, strict=True))
        if at_once > _SAVES * k * one_by_one:
            raise UntraceableError(f"{k} directions together take as long as one by one")
        preparation.blocks[k] = program

    def _by_graph(self, quantity: str, v: Tensor) -> Tensor:
        preparation, graph, start = self.preparation, self.graph, time.perf_counter()
        self.makes_products = len(self._x) > 1  # joined
        directions = self._variables.split(v)
        try:
            result = taken(graph, quantity, self._variables, directions)
        except RuntimeError as error:
            if _WRITTEN_TO not in str(error):
                raise
            self._graph = self._value = None  # of what f closed over
            graph = self.graph
            result = taken(graph, quantity, self._variables, directions)
        is_first, preparation.seconds = not preparation.seconds, time.perf_counter() - start
        if not is_first and not preparation.given_up:  # the first took the gradient too
            preparation.spent += preparation.seconds
            preparation.expect(preparation.seconds)
        return result

    def _enter(self, v: Tensor | None = None, *, with_gradient: bool = False) -> None:
        """Run the point program at this point, and check it; v is the direction to come."""
        preparation, split = self.preparation, self.preparation.split
        if split is None:
            return
        trusted = self.trusted is split
        if trusted and not with_gradient:
            self._hold(run(split.primal, [*self._x, *self._data]), split)
            return
        value = None if trusted else self.value
        try:
            results = run(split.primal_and_gradient, [*self._x, *self._data])
        except RuntimeError as error:  # a guard, or a shape that has changed
            preparation.distrust(str(error).strip().splitlines()[0])
            return
        n = 1 + len(self._x)
        suspicious, error = False, 0.0
        if value is not None:
            preparation.points += 1
            error = difference(results[:1], [value])
            suspicious = error > preparation.usual_error
            if error > rounding([value], preparation.value_eps) ** 0.5:
                check_same(value, self._kind.value(self._function, self._x), self._kind.call)
                preparation.distrust("the value of f is not that of the program")
                return
        self._gradient = results[1:n] if with_gradient or self._alone else None
        self._hold(results[n:], split)
        del results  # so that a check can let go of the residuals
        if trusted:
            return
        due = preparation.points > 1 and preparation.points & (preparation.points - 1) == 0
        if due or suspicious:
            self._verify(v)
            if self._split is not None:
                preparation.learn(error)
        self.trusted = self._split

    def _verify(self, v: Tensor | None) -> None:
        """Compare a product with one by double backward, in a random direction if memory allows."""
        preparation, split = self.preparation, self.preparation.split
        assert split is not None and self._residuals is not None
        if v is None or not preparation.request.is_thrifty:
            generator = torch.Generator().manual_seed(preparation.points)
            v = self._variables.space.gaussian(generator)
        self._residuals = None  # not graph and residuals at a time
        retained, directions = self._kind.retain(self._function, self._x), self._variables.split(v)
        theirs = taken(retained, "product", self._variables, directions)
        del retained
        self._residuals = run(split.primal, [*self._x, *self._data])
        with units(preparation.request.precision):
            ours = run(split.tangents["product"], [*self._residuals, v])
        preparation.verified += 1
        if not agree(ours, [theirs], preparation.eps):
            self._gradient = self._split = self._residuals = None
            preparation.distrust("a product is not that of double backward")

    def _record(self, v: Tensor) -> Tensor | None:
        """Record the programs at this point; the product that this took, if it worked."""
        preparation, kind, request = self.preparation, self._kind, self.preparation.request
        preparation.recordings += 1
        try:
            new = record_programs(kind, self._function, self._variables, self._data, v, request)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if isinstance(error, HesseError) and request.mode != "auto":
                raise
            preparation.give_up(str(error).strip().splitlines()[0])
            return None
        before = self._value if self._graph is None else self._graph.value
        if before is not None and not agree([before], [new.value], new.eps):
            check_same(new.value, kind.value(self._function, self._x), kind.call)
        if new.recomputes:  # outside of the recording, which must not see it
            kind.retain(self._function, self._x).check()
        preparation.accept(new)
        self._graph, self._value = None, new.value
        self._hold(new.residuals, new.split)
        self._gradient = new.gradient if self._alone else None
        self.trusted = new.split
        self._products += 1
        self.makes_products = new.split.tangents["product"].makes_outputs
        return new.product


def _seconds(program: Callable[..., list[Tensor]], tensors: list[Tensor], runs: int = 3) -> float:
    """The least of some runs."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run(program, tensors)
        if tensors[0].is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)
