# SPDX-License-Identifier: Apache-2.0
"""`OneShotSum`: sums over summands that are evaluated anew for every product."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from hesse.ad.definition import Vectors
from hesse.ad.product import Mode
from hesse.ad.summands import Summand, weighted_sum
from hesse.engine.assembly import Assembly
from hesse.engine.kept_products import Points
from hesse.engine.point import Point


@dataclass
class OneShotSum:
    """The products by any one-shot mode, by its name; value and gradient without a graph.

    `custom_function` is what the last products met that must be compared with differences.
    """

    points: Points
    assemblies: Mapping[Vectors, Assembly]
    modes: Mapping[str, Mode]
    custom_function: str | None = field(default=None, init=False)

    def product(
        self, mode: str | Mode, v: Tensor, with_gradient: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """H v, and the value and the gradient where they are free or asked for.

        `mode`: the name of one of `modes`, or another way to take a product.
        """
        assembly, one_shot = self._assembly, self.modes[mode] if isinstance(mode, str) else mode
        total, values, gradient = assembly.space.empty(), [], None
        for index, (summand, point) in enumerate(self.points()):
            direction = point.variables.split(assembly.take(v, index))
            result = one_shot(point.function, point.variables.x, direction, with_gradient)
            self.custom_function = self.custom_function or result.custom_function
            values.append((summand.coefficient, (result.value,)))
            self._store(total, index, summand, point, result.product)
            if result.gradient is not None and with_gradient:
                gradient = assembly.space.empty() if gradient is None else gradient
                self._store(gradient, index, summand, point, result.gradient)
        (value,) = weighted_sum(values)
        return total, value if with_gradient else None, gradient

    def value(self) -> Tensor:
        """sum_i c_i f_i(x)."""
        parts = ((s.coefficient, (point.evaluate()[0],)) for s, point in self.points())
        (value,) = weighted_sum(parts)
        assert value is not None
        return value

    def value_and_gradient(self) -> tuple[Tensor, Tensor]:
        """The value and the flat gradient."""
        gradient, values = self._assembly.space.empty(), []
        for index, (summand, point) in enumerate(self.points()):
            x = point.variables.x
            value, part = point.definition.value_and_gradient(point.function, x)
            values.append((summand.coefficient, (value,)))
            self._store(gradient, index, summand, point, part)
        (value,) = weighted_sum(values)
        assert value is not None
        return value, gradient

    @property
    def _assembly(self) -> Assembly:
        return self.assemblies["variables"]

    def _store(
        self, total: Tensor, index: int, summand: Summand, point: Point, leaves: list[Tensor]
    ) -> None:
        part = point.variables.join(leaves)
        self._assembly.store(total, index, part, summand.coefficient, first=index == 0)
