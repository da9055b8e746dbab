# SPDX-License-Identifier: Apache-2.0
"""What a summed product holds from one sweep over the data to the next: points and products.

`KeptProducts` is a cache. It holds products while the bytes of their residuals fit, and remembers
for all summands which programs were found right for which data. `KeptPoints` are there where the
data are tensors that stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from hesse.ad.quadratic import Quadratic
from hesse.ad.summands import Summand
from hesse.engine.data_version import DataVersion, versions
from hesse.engine.graph_product import GraphProduct
from hesse.engine.point import Point
from hesse.engine.program_cache import CachedProgram
from hesse.engine.program_product import ProgramProduct
from hesse.engine.quadratic_product import QuadraticProduct
from hesse.surroundings import recorded_contexts
from hesse.tracing.partition import Partition

Product = GraphProduct | ProgramProduct | QuadraticProduct
Settled = tuple[int, float, Product]


@dataclass(frozen=True)
class KnownSummand:
    """A summand as it was at the last sweep."""

    coefficient: float
    version: DataVersion | None
    """None where the data are not asked for: a single summand is held whatever it is."""
    partition: Partition | None
    """That was found right for these data."""
    product: Product | None
    """None if there was no room for it."""
    nbytes: float = 0.0


Points = Callable[[], Iterator[tuple[Summand, Point]]]
"""The summands, made again by every sweep, and the point at which each is taken."""


class KeptPoints:
    """The points of a sweep and their programs, which serve until somebody writes to the data.

    Args:
        points: sweeps over the data.
        look_up: (i, summand, point) -> the programs.
    """

    def __init__(
        self, points: Points, look_up: Callable[[int, Summand, Point], CachedProgram]
    ) -> None:
        self.points = tuple(points())
        self.entries = {
            index: look_up(index, summand, point)
            for index, (summand, point) in enumerate(self.points)
            if not isinstance(summand.function, Quadratic)  # which has no programs
        }
        self._data = [tensor for summand, _ in self.points for tensor in summand.data]
        self._versions, self._contexts = versions(self._data), recorded_contexts()

    @property
    def are_current(self) -> bool:
        """Whether they would be the same now."""
        unwritten = self._versions == versions(self._data)
        return unwritten and self._contexts == recorded_contexts()


class KeptProducts:
    """The known summands, by their index in a sweep.

    Args:
        limit: the bytes that products may take while programs are validated, and later.
        keeps_graphs: whether retained graphs are held too.
        stays: whether the data of every sweep are the same tensors, so that a write to them shows.
    """

    def __init__(
        self, limit: tuple[float, float], *, keeps_graphs: bool = True, stays: bool = False
    ) -> None:
        self._limit, self._later = limit
        self._keeps_graphs, self._stays = keeps_graphs, stays
        self._known: dict[int, KnownSummand] = {}

    def __len__(self) -> int:
        """How many products are held."""
        return sum(known.product is not None for known in self._known.values())

    @property
    def keeps_all(self) -> bool:
        """Whether there is no limit."""
        return self._limit == math.inf

    @property
    def num_batches(self) -> int:
        """How many products with data are held: weight decay has none."""
        held = (known.product for known in self._known.values())
        return sum(isinstance(product, (GraphProduct, ProgramProduct)) for product in held)

    @property
    def nbytes(self) -> float:
        """The bytes of what is held."""
        return sum(known.nbytes for known in self._known.values())

    @property
    def products(self) -> list[Settled]:
        """(i, c_i, product i) of those that are held."""
        known = sorted(self._known.items())
        return [(i, k.coefficient, k.product) for i, k in known if k.product is not None]

    def get(self, index: int) -> KnownSummand | None:
        """What is known of a summand, whatever its data are now."""
        return self._known.get(index)

    def find(self, index: int, summand: Summand) -> tuple[KnownSummand | None, DataVersion | None]:
        """What is known of a summand with these data, and their version if it was looked at.

        Where a loader gives other batches in every sweep there is nothing to hold.
        """
        known = self._known.get(index)
        if known is None or known.version is None:
            return known, None
        version = known.version.match(summand.data)
        if version is known.version:
            return known, version
        if known.product is not None:
            self._known.clear()
            self._limit = self._later = 0.0
        self._known.pop(index, None)
        return None, version

    def keep(
        self, index: int, summand: Summand, product: Product, version: DataVersion | None
    ) -> None:
        """Remember a summand; hold its product if there is room."""
        known = self._known.get(index)
        if known is not None and known.product is product:
            return
        if not self.keeps_all:
            if summand.key is None:
                return
            version = version or DataVersion.of(summand.data, stay=self._stays)
        self._known.pop(index, None)
        nbytes = 0.0 if self.keeps_all else self._bytes_of(product)
        is_held = self.keeps_all or nbytes <= self._limit - self.nbytes
        self._known[index] = KnownSummand(
            summand.coefficient,
            version,
            product.partition if isinstance(product, ProgramProduct) else None,
            product if is_held else None,
            nbytes if is_held else 0.0,
        )

    def replace(self, index: int, product: Product) -> None:
        """Hold another form of a product that takes no more memory."""
        if index in self._known:
            self._known[index] = replace(self._known[index], product=product)

    def release(self, index: int) -> None:
        """Let go of a product, but not of what is known of its summand."""
        if index in self._known:
            self._known[index] = replace(self._known[index], product=None, nbytes=0.0)

    def forget(self, index: int) -> None:
        """Let go of a summand whose data were written to."""
        self._known.pop(index, None)

    def end_sweep(self) -> None:
        """There is more room once programs are validated."""
        if all(known.partition is not None for known in self._known.values()):
            self._limit = max(self._limit, self._later)

    def _bytes_of(self, product: Product) -> float:
        if isinstance(product, GraphProduct) and not self._keeps_graphs:
            return math.inf
        return product.kept_bytes
