# SPDX-License-Identifier: Apache-2.0
"""`SummedProduct`: sum_i c_i (product i) at one point, over summands that are swept one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

from hesse.ad.definition import PRODUCT, Quantity, Vectors
from hesse.ad.quadratic import Quadratic
from hesse.ad.summands import Summand, weighted_sum
from hesse.ad.variables import detached
from hesse.engine.assembly import Assembly, Shared
from hesse.engine.compiler import block_size
from hesse.engine.graph_product import GraphProduct
from hesse.engine.kept_products import KeptProducts, Product
from hesse.engine.options import ProductOptions
from hesse.engine.plan import Held, Plan, plan_of
from hesse.engine.point import Point
from hesse.engine.prepare import Prepared, prepare, run_primal
from hesse.engine.program_cache import CachedProgram, ProgramCache
from hesse.engine.program_product import ProgramProduct
from hesse.engine.quadratic_product import QuadraticProduct
from hesse.errors import DataError
from hesse.vectors.rows import empty_rows

PreparedMode = Literal["auto", "compiled-split", "traced-split", "retained-graph"]
PREPARED_MODES = ["compiled-split", "traced-split", "retained-graph"]

Points = Callable[[], Iterator[tuple[Summand, Point]]]
"""The summands, anew for every sweep, and the point at which each is taken."""

# What torch says of a tensor that a graph needs and that was changed in place.
_WRITTEN_TO = "modified by an inplace operation"


class SummedProduct:
    """The products of a definition at a point, on flat vectors.

    Args:
        points: the summands and their points.
        assemblies: how the vectors of the summands make one.
        options: what is asked for.
        cache: programs that are there already.
        kept: the products that are held between sweeps.
        holds_data: whether the data are tensors that stay, so that a write to them shows.
    """

    def __init__(
        self,
        points: Points,
        assemblies: Mapping[Vectors, Assembly],
        options: ProductOptions,
        cache: ProgramCache,
        kept: KeptProducts,
        *,
        holds_data: bool = True,
    ) -> None:
        self._points, self._assemblies = points, assemblies
        self._options, self._cache, self._kept = options, cache, kept
        self._holds_data = holds_data
        self._num_summands = 0
        self._num_products = 0
        self._announced = 0
        self._entries: dict[int, CachedProgram] = {}
        self._unshared: dict[int, CachedProgram] = {}
        self.custom_function: str | None = None
        """An operation in a summand because of which products must be compared with differences."""

    # -- How products are taken --------------------------------------------------------------------

    @property
    def mode(self) -> str:
        """How the last product was taken."""
        return next(reversed(self._entries.values())).mode if self._entries else "retained-graph"

    @property
    def takes_blocks(self) -> bool:
        """Whether there are programs by now, which can take several directions at once."""
        return bool(self._entries) and self.mode != "retained-graph"

    def plan(self, failures: list[str]) -> Plan:
        """How products are taken."""
        entries = list({id(entry): entry for entry in self._entries.values()}.values())
        held = Held(self._kept.num_batches, len(self._entries), self._kept.nbytes)
        return plan_of(self.mode, entries, failures, held)

    def announce(self, products: int) -> None:
        """So many products will follow."""
        self._announced = products
        for entry in self._entries.values():
            entry.usage.announce(products)

    # -- Values, gradients, products ---------------------------------------------------------------

    def value(self) -> Tensor:
        """sum_i c_i f_i(x)."""
        parts = ((s.coefficient, (self._value(i, s, p),)) for i, s, p in self._enumerate())
        (value,) = weighted_sum(parts)
        assert value is not None
        return value

    def value_and_gradient(self) -> tuple[Tensor, Tensor]:
        """The value and the flat gradient."""
        assembly = self._assemblies["variables"]
        values, total = [], assembly.space.empty()
        for index, summand, point in self._enumerate():
            value, gradient = self._value_and_gradient(index, summand, point)
            values.append((summand.coefficient, (value,)))
            part = point.join("variables", gradient)
            assembly.store(total, index, part, summand.coefficient, first=index == 0)
        (value,) = weighted_sum(values)
        assert value is not None
        return value, total

    def apply(self, quantity: Quantity, direction: Tensor) -> Tensor:
        """A quantity in a flat direction."""
        direction, total = _plain(direction), None
        if quantity.result is None:
            parts = (c * p for _, c, p, _ in self._results(quantity, direction))
            return torch.stack([part.reshape(()) for part in parts]).sum()
        assembly = self._assemblies[quantity.result]
        for index, coefficient, part, owned in self._results(quantity, direction):
            if total is None and owned and assembly.is_sum:
                total = part if coefficient == 1.0 else part.mul_(coefficient)
            else:
                first = total is None
                total = assembly.space.empty() if total is None else total
                assembly.store(total, index, part, coefficient, first=first)
            del part  # before the next summand is computed
        assert total is not None
        return total

    def products(self, block: Tensor) -> Tensor:
        """The products with the rows of a block, shape (k, n)."""
        assembly = self._assemblies["variables"]
        result = assembly.space
        total = empty_rows(len(block), result.size, dtype=result.dtype, device=result.device)
        if len(block) == 0:
            return total
        block = _plain(block)
        for index, coefficient, ready in self._sweep(PRODUCT, block[0]):
            rows, done = assembly.take(block, index), 0
            while done < len(rows):
                part = _some_products(ready.product, rows[done:])
                stop = done + len(part)
                assembly.store(total[done:stop], index, part, coefficient, first=index == 0)
                done = stop
        return total

    def _results(
        self, quantity: Quantity, direction: Tensor
    ) -> Iterator[tuple[int, float, Tensor, bool]]:
        """(i, c_i, the result of summand i, whether its memory may be written to)."""
        take = self._assemblies[quantity.direction].take
        for index, coefficient, (product, part) in self._sweep(quantity, direction):
            if part is None:
                part = self._apply(index, product, quantity, take(direction, index))
            self.custom_function = self.custom_function or product.custom_function
            owned = product.owns_results
            del product
            yield index, coefficient, part, owned
            del part
        self._num_products += 1

    def _apply(self, index: int, product: Product, quantity: Quantity, direction: Tensor) -> Tensor:
        try:
            return product.apply(quantity, direction)
        except RuntimeError as error:
            if _WRITTEN_TO not in str(error) or not isinstance(product, GraphProduct):
                raise
        again = GraphProduct(product.point, self._entries[index])  # f closed over that tensor
        self._kept.replace(index, again)
        return again.apply(quantity, direction)

    # -- One summand -------------------------------------------------------------------------------

    def _value(self, index: int, summand: Summand, point: Point) -> Tensor:
        product = self._held(index)
        if product is None and isinstance(summand.function, Quadratic):
            product = QuadraticProduct(point)
        outputs = None if product is None else product.outputs
        if outputs is not None:
            return outputs[0]
        entry = self._entry(index, summand, point)
        if not self._kept.keeps_all or entry.partition is not None:
            return point.evaluate()[0]
        graph = GraphProduct(point, entry)
        self._hold(index, summand, graph)
        return graph.outputs[0]

    def _value_and_gradient(
        self, index: int, summand: Summand, point: Point
    ) -> tuple[Tensor, list[Tensor]]:
        if isinstance(summand.function, Quadratic):
            quadratic = QuadraticProduct(point)
            return quadratic.outputs[0], quadratic.gradient
        if not self._kept.keeps_all:
            x = point.variables.x
            return point.definition.value_and_gradient(point.function, x)
        product = self._held(index)
        entry = self._entry(index, summand, point)
        if not isinstance(product, GraphProduct) and entry.partition is not None:
            gradient = product.gradient if isinstance(product, ProgramProduct) else None
            if gradient is None:
                fresh = run_primal(point, entry, validated=product is not None, with_gradient=True)
                gradient = None if fresh is None else fresh.gradient
                if fresh is not None:
                    product = fresh.without_gradient()
                    self._hold(index, summand, product)
            if gradient is not None and product is not None:
                outputs = product.outputs or point.evaluate()
                return outputs[0], gradient
        if not isinstance(product, GraphProduct):
            product = GraphProduct(point, entry)
            self._hold(index, summand, product)
        return product.outputs[0], product.gradient

    def _held(self, index: int) -> Product | None:
        """The product of a summand if it is held, and nobody has written to its data."""
        known = self._kept.get(index)
        if known is None or known.product is None:
            return None
        if known.product.is_current:
            return known.product
        self._kept.forget(index)
        return None

    def _hold(self, index: int, summand: Summand, product: Product) -> None:
        self._kept.keep(index, summand, product, None)

    def _entry(self, index: int, summand: Summand, point: Point) -> CachedProgram:
        """The programs for a summand, shared with all of its shape if it says what it is."""
        if summand.key is None:
            entry = self._unshared.setdefault(index, CachedProgram(self._options))
        else:
            entry = self._cache.entry(point, summand.key, self._options)
        self._entries[index] = entry
        entry.usage.announce(self._announced)
        return entry

    # -- The sweep ---------------------------------------------------------------------------------

    def _enumerate(self) -> Iterator[tuple[int, Summand, Point]]:
        for index, (summand, point) in enumerate(self._points()):
            self._num_summands = max(self._num_summands, index + 1)
            yield index, summand, point

    def _sweep(
        self, quantity: Quantity, direction: Tensor
    ) -> Iterator[tuple[int, float, Prepared]]:
        """(i, c_i, the product of summand i), prepared for a quantity in this direction."""
        take = self._assemblies[quantity.direction].take
        if self._is_settled:
            for index, coefficient, product in self._kept.items():
                yield index, coefficient, Prepared(product)
            return
        for index, summand, point in self._enumerate():
            known, version = self._kept.find(index, summand)
            if known is None and version is not None and self._is_ordered:
                raise _other_order(index)
            product = self._held(index) if known is not None else None
            entry = self._entry(index, summand, point) if not _is_quadratic(summand) else None
            if entry is None:
                ready = Prepared(product or QuadraticProduct(point))
            elif product is None or self._is_outdated(product, entry):
                ready = self._prepare(index, point, entry, quantity, take(direction, index))
            else:
                ready = Prepared(self._settled(index, product))
            yield index, summand.coefficient, ready
            self._kept.keep(index, summand, ready.product, version)
            del ready, product
        self._kept.end_sweep()

    @property
    def _is_ordered(self) -> bool:
        """Whether every summand has a slice of a vector, which must be the same in every sweep."""
        return not all(isinstance(a, Shared) for a in self._assemblies.values())

    @property
    def _is_settled(self) -> bool:
        """Whether all products are held and none would be taken another way now."""
        return (
            0 < self._num_summands == len(self._kept)
            and self._num_products > 1
            and (self._holds_data or self._kept.keeps_all)
            and all(
                product.is_current
                and not (
                    index in self._entries and self._is_outdated(product, self._entries[index])
                )
                for index, _, product in self._kept.items()
            )
        )

    def _prepare(
        self, index: int, point: Point, entry: CachedProgram, quantity: Quantity, direction: Tensor
    ) -> Prepared:
        known = self._kept.get(index)
        graph = known.product if known is not None else None
        validated = known is not None and known.partition is entry.partition is not None
        if known is not None:
            self._kept.release(index)
        return prepare(
            point,
            entry,
            quantity,
            direction,
            graph=graph if isinstance(graph, GraphProduct) else None,
            validated=validated,
            with_gradient=self._kept.keeps_all and self._num_products == 0,
        )

    def _is_outdated(self, product: Product, entry: CachedProgram) -> bool:
        """Whether a graph had better be replaced by programs."""
        if not isinstance(product, GraphProduct):
            return False
        return entry.partition is not None or entry.should_trace

    def _settled(self, index: int, product: Product) -> Product:
        """A held product without its gradient: who wants that asks for it early."""
        if self._num_products == 0 or not isinstance(product, ProgramProduct):
            return product
        lighter = product.without_gradient()
        if lighter is not product:
            self._kept.replace(index, lighter)
        return lighter


def _some_products(product: Product, rows: Tensor) -> Tensor:
    """The products of one summand with the first rows, as many at once as pay."""
    if isinstance(product, ProgramProduct):
        # Powers of two, so that few sizes are ever traced.
        k = 1 << (min(block_size(product.entry), len(rows)).bit_length() - 1)
        together = product.apply_block(rows[:k]) if k > 1 else None
        if together is not None:
            return together
    return product.apply(PRODUCT, rows[0])[None]


def _other_order(index: int) -> DataError:
    return DataError(
        expected="the same batches in the same order at every sweep: each has its own rows",
        got=f"other data in batch {index} than at the last sweep",
        remedy="Give a list of batches, as list(loader) does, or a loader with shuffle=False.",
    )


def _is_quadratic(summand: Summand) -> bool:
    return isinstance(summand.function, Quadratic)


def _plain(directions: Tensor) -> Tensor:
    """In the form that programs are traced for: contiguous, no inference tensor."""
    return detached(directions.contiguous())
