# SPDX-License-Identifier: Apache-2.0
"""`GraphProduct`: products at a point by the retained autograd graph of its derivatives."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from hesse.ad.definition import Linearisation, Quantity, Vectors
from hesse.ad.determinism import check_same
from hesse.ad.graph_nodes import AMONG_RANKS, saved_bytes
from hesse.ad.torch_calls import generator_states, same_states
from hesse.ad.variables import Variables
from hesse.engine.closeness import fingerprint
from hesse.engine.data_version import versions
from hesse.engine.point import Point
from hesse.engine.program_cache import CachedProgram
from hesse.vectors.space import Space


@dataclass(frozen=True)
class Sample:
    """A product that a graph gave; the program that is traced must give it too."""

    direction: Tensor
    fingerprint: list[float]


class GraphProduct:
    """A linearised function and where it was linearised; nothing of it changes but a cache."""

    owns_results = False

    def __init__(self, point: Point, entry: CachedProgram) -> None:
        self.point, self._entry = point, entry
        self.graph = _linearised(point, again=entry.usage.num_nodes > 0)
        if not entry.usage.num_nodes:
            names = self.graph.node_names
            entry.usage.inspect(names, point.variables.nbytes)
            if any(AMONG_RANKS in name for name in names):
                entry.disable("f communicates with other processes")
        self._versions = versions(point.data)
        self._sample_cache: Sample | None = None

    @property
    def is_current(self) -> bool:
        """Whether nobody has written to the data since, as far as they tell."""
        return self._versions == versions(self.point.data)

    @property
    def tensors(self) -> list[Tensor]:
        """What the graph was made from; what it saved for its backward passes is torch's."""
        return list(self.point.data)

    @property
    def is_outdated(self) -> bool:
        """Whether programs had better take its place."""
        entry = self._entry
        return entry.partition is not None or entry.cost_model.should_trace(entry.usage)

    @property
    def outputs(self) -> list[Tensor]:
        """The outputs of f."""
        return self.graph.outputs

    @property
    def gradient(self) -> list[Tensor]:
        """The gradient of f, one tensor a variable."""
        return self.graph.gradient

    @property
    def custom_function(self) -> str | None:
        """An operation in f for which products must be compared with differences."""
        return self.graph.custom_function

    @property
    def kept_bytes(self) -> float:
        """What holding on to it takes: what the first graph of this shape does."""
        if self.graph.needs_check:
            return math.inf
        usage = self._entry.usage
        if usage.graph_bytes is None:
            known = [*self.point.variables.x, *self.point.data]
            usage.graph_bytes = saved_bytes(self.graph.retained, known)
        return usage.graph_bytes

    def sample(self, directions: Mapping[Vectors, Tensor]) -> Sample:
        """The last product, if it was kept, or else that with one of these directions."""
        if self._sample_cache is not None:
            return self._sample_cache
        quantity = self.point.definition.quantities[0]
        direction = directions[quantity.direction]
        return Sample(direction, fingerprint(self.product(direction)))

    def product(self, direction: Tensor) -> Tensor:
        """The first quantity of the definition in a direction, which is not counted."""
        return apply_graph(self.graph, self.point, self.point.definition.quantities[0], direction)

    def apply(self, quantity: Quantity, direction: Tensor) -> Tensor:
        """The quantity in a flat direction, flat."""
        start = time.perf_counter()
        result = apply_graph(self.graph, self.point, quantity, direction)
        seconds = time.perf_counter() - start
        self._entry.usage.add_graph_product(seconds, traceable=not self._entry.disabled)
        if self.is_outdated and quantity == self.point.definition.quantities[0]:
            # A copy: who gave the direction may overwrite it before the next product traces.
            self._sample_cache = Sample(direction.clone(), fingerprint(result))
        return result


def _linearised(point: Point, *, again: bool) -> Linearisation:
    """f at a point with its graph; raises for an f that draws random numbers.

    `again`: the same f was linearised elsewhere, when it drew none from generators outside of
    torch.
    """
    before = generator_states(quickly=again)
    graph = point.definition.linearise(point.function, point.variables.x)
    if not same_states(before, generator_states(quickly=again)):  # a seed may be fixed inside
        check_same(graph, point.definition.linearise(point.function, point.variables.x))
    graph.check()
    return graph


def apply_graph(
    graph: Linearisation, point: Point, quantity: Quantity, direction: Tensor
) -> Tensor:
    """A quantity by a graph, from a flat direction to a flat result."""
    leaves = _vectors(point, quantity.direction).split(direction)
    result = graph.apply(quantity.name, leaves)
    if isinstance(result, Tensor):
        return result
    return _vectors(point, quantity.result or "variables").join(result)


def _vectors(point: Point, name: Vectors) -> Variables | Space:
    vectors = point.variables if name == "variables" else point.outputs
    assert vectors is not None
    return vectors
