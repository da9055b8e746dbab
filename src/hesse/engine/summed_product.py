# SPDX-License-Identifier: Apache-2.0
"""`SummedProduct`: sum_i c_i (product i) at one point, over summands that are swept one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

from hesse.ad.definition import PRODUCT, Quantity, Vectors
from hesse.ad.quadratic import Quadratic
from hesse.ad.summands import Summand, weighted_sum
from hesse.ad.variables import detached
from hesse.engine.assembly import Assembly, Shared
from hesse.engine.compiler import block_size
from hesse.engine.data_version import BitSums
from hesse.engine.graph_product import GraphProduct
from hesse.engine.kept_products import KeptPoints, KeptProducts, Points, Product, Settled
from hesse.engine.options import ProductOptions
from hesse.engine.plan import Held, Plan, plan_of
from hesse.engine.point import Point
from hesse.engine.prepare import Prepared, prepare, prepare_gradient
from hesse.engine.program_cache import CachedProgram, ProgramCache
from hesse.engine.program_product import ProgramProduct
from hesse.engine.quadratic_product import QuadraticProduct
from hesse.errors import DataError, HesseError, first_line
from hesse.vectors.rows import empty_rows

PreparedMode = Literal["auto", "compiled-split", "traced-split", "retained-graph"]
PREPARED_MODES = ["compiled-split", "traced-split", "retained-graph"]

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
        holds_points: whether the points of the last sweep serve as long as nobody writes to them.
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
        holds_points: bool = False,
    ) -> None:
        self._make_points, self._assemblies = points, assemblies
        self._options, self._cache, self._kept = options, cache, kept
        self._stays = holds_data or kept.keeps_all
        self._is_sum = {name: assembly.is_sum for name, assembly in assemblies.items()}
        # Where every summand has a slice of a vector, the order must be that of the last sweep.
        self._slices = {name for name, a in assemblies.items() if not isinstance(a, Shared)}
        self._num_products = 0
        self._announced = 0
        self._entries: dict[int, CachedProgram] = {}
        self._unshared: dict[int, CachedProgram] = {}
        self._kept_points = KeptPoints(points, self._look_up) if holds_points else None
        self._settled: list[Settled] = []
        self._bits = BitSums()
        # Of a single summand: the outputs that the value was, which validate a program.
        self._evaluated: dict[int, list[Tensor]] = {}
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

    # -- Products ----------------------------------------------------------------------------------

    def apply(self, quantity: Quantity, direction: Tensor) -> Tensor:
        """A quantity in a flat direction."""
        direction, total = _plain(direction), None
        for index, coefficient, ready in self._sweep(quantity, direction):
            part, owned = self._result(index, ready, quantity, direction)
            del ready
            if quantity.result is not None and not self._is_sum[quantity.result]:
                total = self._stored(total, quantity.result, index, part, coefficient)
            elif total is None:
                total = part if owned and coefficient == 1.0 else part * coefficient
            else:
                total.add_(part, alpha=coefficient)
            del part  # before the next summand is computed
        self._num_products += 1
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
                part = self._some_products(index, ready.product, rows[done:])
                stop = done + len(part)
                assembly.store(total[done:stop], index, part, coefficient, first=index == 0)
                done = stop
        return total

    def summand_products(self, direction: Tensor) -> Iterator[tuple[float, Product]]:
        """c_i and the product of summand i, ready for a flat direction, one after the other."""
        self._num_products += 1  # as for products: the gradient is made for who asks for it
        for _, coefficient, ready in self._sweep(PRODUCT, _plain(direction)):
            yield coefficient, ready.product

    def outputs(self, index: int, point: Point) -> list[Tensor]:
        """Those of f; of a single summand they are held for the value and the next product."""
        held = self._held(index)
        outputs = self._evaluated.get(index) if held is None else held.outputs
        if outputs is None:
            outputs = point.evaluate()
            if self._kept.keeps_all:
                self._evaluated[index] = outputs
        return outputs

    def _some_products(self, index: int, product: Product, rows: Tensor) -> Tensor:
        """The products of one summand with the first rows, as many at once as pay."""
        if isinstance(product, ProgramProduct):
            # Powers of two, so that few sizes are ever traced.
            k = 1 << (min(block_size(product.entry), len(rows)).bit_length() - 1)
            together = product.apply_block(rows[:k]) if k > 1 else None
            if together is not None:
                return together
        return self._apply(index, product, PRODUCT, rows[0])[None]

    def _stored(
        self, total: Tensor | None, vectors: Vectors, index: int, part: Tensor, coefficient: float
    ) -> Tensor:
        assembly, first = self._assemblies[vectors], total is None
        total = assembly.space.empty() if total is None else total
        assembly.store(total, index, part, coefficient, first=first)
        return total

    def _result(
        self, index: int, ready: Prepared, quantity: Quantity, direction: Tensor
    ) -> tuple[Tensor, bool]:
        """The result of a summand, and whether its memory may be given away."""
        product, part = ready
        if part is None:
            part = self._apply(index, product, quantity, self._take(quantity, direction, index))
        if quantity.result in self._slices:
            self._assemblies[quantity.result].check(part, index)
        self.custom_function = self.custom_function or product.custom_function
        return part, product.owns_results

    def _apply(self, index: int, product: Product, quantity: Quantity, direction: Tensor) -> Tensor:
        try:
            return product.apply(quantity, direction)
        except (HesseError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if isinstance(product, ProgramProduct):  # in a context of the user's, say
                product.entry.invalidate(first_line(error))
            elif isinstance(product, QuadraticProduct) or _WRITTEN_TO not in str(error):
                raise
        again = GraphProduct(product.point, self._entries[index])  # f closed over that tensor
        self._kept.replace(index, again)
        self._settled = []
        return again.apply(quantity, direction)

    def _take(self, quantity: Quantity, vector: Tensor, index: int) -> Tensor:
        """The direction of a summand."""
        if quantity.direction not in self._slices:
            return vector
        return self._assemblies[quantity.direction].take(vector, index)

    # -- The sweep ---------------------------------------------------------------------------------

    def _points(self) -> Iterable[tuple[Summand, Point]]:
        """The summands and their points."""
        if self._kept_points is None:
            return self._make_points()
        if not self._kept_points.are_current:
            self._kept_points = KeptPoints(self._make_points, self._look_up)
        return self._kept_points.points

    def _sweep(
        self, quantity: Quantity, direction: Tensor
    ) -> Iterator[tuple[int, float, Prepared]]:
        """(i, c_i, the product of summand i), prepared for a quantity in this direction."""
        if self._settled and all(_is_settled(product) for *_, product in self._settled):
            self._check_bits()
            for index, coefficient, product in self._settled:
                yield index, coefficient, Prepared(product)
            return
        self._settled, count = [], 0
        for index, (summand, point) in enumerate(self._points()):
            known, version = self._kept.find(index, summand)
            if known is None and version is not None and self._slices:
                raise _other_order(index)
            product = self._held(index) if known is not None else None
            if isinstance(summand.function, Quadratic):
                ready = Prepared(product or QuadraticProduct(point))
            elif product is None or product.is_outdated:
                ready = self._prepare(index, summand, point, quantity, direction)
            else:
                self._entry(index, summand, point)
                ready = Prepared(self._lighter(index, product))
            yield index, summand.coefficient, ready
            self._kept.keep(index, summand, ready.product, version)
            del ready, product
            count += 1
        self._kept.end_sweep()
        if self._stays and self._num_products > 0 and len(self._kept) == count:
            self._settled = self._kept.products

    def _check_bits(self) -> None:
        """Raise if what is held was written to behind torch's back; hold it no longer then."""
        try:
            self._bits.check([product for *_, product in self._settled])
        except DataError:
            for index, *_ in self._settled:
                self._kept.forget(index)
            self._settled = []
            raise

    def _prepare(
        self,
        index: int,
        summand: Summand,
        point: Point,
        quantity: Quantity,
        direction: Tensor,
    ) -> Prepared:
        entry, known = self._entry(index, summand, point), self._kept.get(index)
        graph = known.product if known is not None else None
        validated = known is not None and known.partition is entry.partition is not None
        if known is not None:
            self._kept.release(index)
        if not isinstance(graph, GraphProduct):
            graph = None
        decides = entry.cost_model.should_trace
        if entry.partition is None and not decides(entry.usage):
            graph = graph or GraphProduct(point, entry)
            if not decides(entry.usage):  # now that it is known what f is made of
                return Prepared(graph)
        return prepare(
            point,
            entry,
            quantity,
            self._take(quantity, direction, index),
            graph=graph,
            outputs=self._evaluated.pop(index, None),
            validated=validated,
            with_gradient=self._kept.keeps_all and self._num_products == 0,
        )

    def _lighter(self, index: int, product: Product) -> Product:
        """A held product without its gradient: who wants that asks for it early."""
        if self._num_products == 0 or not isinstance(product, ProgramProduct):
            return product
        lighter = product.without_gradient()
        if lighter is not product:
            self._kept.replace(index, lighter)
        return lighter

    def _held(self, index: int) -> Product | None:
        """The product of a summand if it is held, and nobody has written to its data."""
        known = self._kept.get(index)
        if known is None or known.product is None:
            return None
        if known.product.is_current:
            return known.product
        self._kept.forget(index)
        return None

    def _entry(self, index: int, summand: Summand, point: Point) -> CachedProgram:
        """The programs for a summand."""
        kept = self._kept_points
        entry = self._look_up(index, summand, point) if kept is None else kept.entries[index]
        self._entries[index] = entry
        entry.usage.announce(self._announced)
        return entry

    def _look_up(self, index: int, summand: Summand, point: Point) -> CachedProgram:
        """The programs for a summand, shared with all of its shape if it says what it is."""
        if summand.key is None:
            return self._unshared.setdefault(index, CachedProgram(self._options))
        return self._cache.entry(point, summand.key, self._options)

    # -- Values and gradients ----------------------------------------------------------------------

    def value(self) -> Tensor:
        """sum_i c_i f_i(x)."""
        summands = enumerate(self._points())
        (value,) = weighted_sum((s.coefficient, (self._value(i, s, p),)) for i, (s, p) in summands)
        assert value is not None
        return value

    def value_and_gradient(self) -> tuple[Tensor, Tensor]:
        """The value and the flat gradient."""
        assembly = self._assemblies["variables"]
        values, total = [], assembly.space.empty()
        for index, (summand, point) in enumerate(self._points()):
            value, gradient = self._value_and_gradient(index, summand, point)
            values.append((summand.coefficient, (value,)))
            part = point.variables.join(gradient)
            assembly.store(total, index, part, summand.coefficient, first=index == 0)
        (value,) = weighted_sum(values)
        assert value is not None
        return value, total

    def _value(self, index: int, summand: Summand, point: Point) -> Tensor:
        if isinstance(summand.function, Quadratic):
            return QuadraticProduct(point).outputs[0]
        entry = self._entry(index, summand, point)
        is_new = entry.partition is None and self._held(index) is None
        if is_new and self._kept.keeps_all:
            self._kept.keep(index, summand, GraphProduct(point, entry), None)
        return self.outputs(index, point)[0]

    def _value_and_gradient(
        self, index: int, summand: Summand, point: Point
    ) -> tuple[Tensor, list[Tensor]]:
        if isinstance(summand.function, Quadratic):
            product = QuadraticProduct(point)
            return product.outputs[0], product.gradient
        if not self._kept.keeps_all:
            return point.definition.value_and_gradient(point.function, point.variables.x)
        held = self._held(index)
        entry, outputs = self._entry(index, summand, point), self._evaluated.pop(index, None)
        product = prepare_gradient(point, entry, held, outputs)
        if product is not held:
            self._settled = []
            light = product.without_gradient() if isinstance(product, ProgramProduct) else product
            self._kept.keep(index, summand, light, None)
        outputs = product.outputs or point.evaluate()
        assert product.gradient is not None
        return outputs[0], product.gradient


def _is_settled(product: Product) -> bool:
    """Whether it would not be taken another way now."""
    return product.is_current and not product.is_outdated


def _other_order(index: int) -> DataError:
    return DataError(
        expected="the same batches in the same order at every sweep: each has its own rows",
        got=f"other data in batch {index} than at the last sweep",
        remedy="Give a list of batches, as list(loader) does, or a loader with shuffle=False.",
    )


def _plain(directions: Tensor) -> Tensor:
    """In the form that programs are traced for: contiguous, no inference tensor."""
    if directions.is_contiguous() and not directions.requires_grad | directions.is_inference():
        return directions
    return detached(directions.contiguous())
