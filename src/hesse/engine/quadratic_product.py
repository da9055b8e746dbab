# SPDX-License-Identifier: Apache-2.0
"""`QuadraticProduct`: products with c I, the curvature of weight decay, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hesse.ad.definition import Quantity
from hesse.ad.quadratic import Quadratic
from hesse.ad.variables import number
from hesse.engine.point import Point
from hesse.vectors.inner_products import dot


@dataclass(frozen=True)
class QuadraticProduct:
    """f(x) = (c / 2) |x|^2 at a point."""

    point: Point

    owns_results = True
    is_current = True
    is_outdated = False
    custom_function = None
    kept_bytes = 0.0

    @property
    def tensors(self) -> list[Tensor]:
        """What products are computed from: c alone."""
        return []

    @property
    def curvature(self) -> float:
        """c."""
        quadratic: Quadratic = self.point.function.function
        return quadratic.curvature

    @property
    def outputs(self) -> list[Tensor]:
        """f(x), over all leaves, those that are frozen too."""
        return [number(self.point.function(self.point.variables.x))]

    @property
    def gradient(self) -> list[Tensor]:
        """c x."""
        return [self.curvature * leaf for leaf in self.point.variables.x]

    def apply(self, quantity: Quantity, direction: Tensor) -> Tensor:
        """c v, or c v'v, without the entries of frozen leaves."""
        varying = self.point.variables.join(self.point.variables.split(direction))
        if quantity.result is None:
            return varying.new_tensor(self.curvature * dot(varying, varying), dtype=varying.dtype)
        return self.curvature * varying
