# SPDX-License-Identifier: Apache-2.0
"""`GraphProduct`: products at a point by the retained autograd graph of its derivatives."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import cached_property

from torch import Tensor

from hesse.ad.definition import Linearisation, Quantity, Vectors
from hesse.ad.graph_nodes import saved_bytes
from hesse.engine.data_version import versions
from hesse.engine.point import Point
from hesse.engine.program_cache import CachedProgram


class GraphProduct:
    """A linearised function and where it was linearised; nothing of it changes."""

    owns_results = False

    def __init__(self, point: Point, entry: CachedProgram) -> None:
        self.point, self._entry = point, entry
        self.graph: Linearisation = point.linearise(again=entry.usage.num_nodes > 0)
        if not entry.usage.num_nodes:
            entry.usage.inspect(self.graph.node_names, point.variables.nbytes)
        self._versions = versions(point.data)

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
        return self._entry.partition is not None or self._entry.should_trace

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

    @cached_property
    def kept_bytes(self) -> float:
        """What holding on to it takes."""
        return (
            math.inf
            if self.graph.needs_check
            else saved_bytes(self.graph.retained, self.point.inputs)
        )

    def product(self, directions: Mapping[Vectors, Tensor]) -> Tensor:
        """The product with one of these directions, which is not counted."""
        quantity = self.point.definition.quantities[0]
        return self.point.apply(self.graph, quantity, directions[quantity.direction])

    def apply(self, quantity: Quantity, direction: Tensor) -> Tensor:
        """The quantity in a flat direction, flat."""
        start = time.perf_counter()
        result = self.point.apply(self.graph, quantity, direction)
        seconds = time.perf_counter() - start
        self._entry.usage.add_graph_product(seconds, traceable=not self._entry.disabled)
        return result
