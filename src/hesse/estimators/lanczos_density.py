# SPDX-License-Identifier: Apache-2.0
"""The density of eigenvalues by stochastic Lanczos quadrature, smoothed by a Gaussian."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hesse.errors import Status
from hesse.estimators.density import SpectralDensity, mean_and_error
from hesse.estimators.quadrature import Quadratures
from hesse.operators.base import LinearOperator


@dataclass
class LanczosDensity:
    """Rules of the probes so far."""

    A: LinearOperator
    steps: int
    points: int
    bandwidth: float | None
    block_size: int
    call: str
    products: int = 0
    rules: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Probes taken."""
        return len(self.rules)

    @property
    def cost(self) -> int:
        """Products a probe."""
        return self.steps

    @property
    def held(self) -> int:
        """Vectors a probe: a basis and a product."""
        return self.steps + 3

    def take(self, probes: Tensor) -> None:
        """Take in probes."""
        quadratures = Quadratures(self.A, probes, self.block_size, self.call)
        quadratures.extend(self.steps)
        self.rules += [self._padded(*quadratures.rule(i)) for i in range(len(probes))]
        self.products += quadratures.products

    def _padded(self, nodes: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The rule with nodes of no weight where its process has ended early."""
        missing = self.steps - len(nodes)
        return (
            torch.cat([nodes, nodes[-1:].expand(missing)]),
            torch.cat([weights, weights.new_zeros(missing)]),
        )

    def density(self, status: Status) -> SpectralDensity:
        """The density from the probes so far."""
        nodes = torch.stack([nodes for nodes, _ in self.rules])
        weights = torch.stack([weights for _, weights in self.rules])
        sigma = self._width(nodes)
        low, high = float(nodes.min()) - 4 * sigma, float(nodes.max()) + 4 * sigma
        grid = torch.linspace(low, high, self.points, dtype=torch.float64)
        curves = torch.stack([_curve(*rule, grid, sigma) for rule in self.rules])
        mean, error = mean_and_error(curves)
        return SpectralDensity(grid, mean, error, nodes, weights, sigma, self.products, status)

    def _width(self, nodes: Tensor) -> float:
        """The bandwidth: wide enough that the quadrature resolves it, unless given."""
        if self.bandwidth is not None:
            return self.bandwidth
        low, high = float(nodes.min()), float(nodes.max())
        scale = max(high - low, 1e-3 * max(abs(low), abs(high)), 1e-30)
        return max(0.01, 0.0 if self.steps >= self.A.shape[0] else 1 / self.steps) * scale


def _curve(nodes: Tensor, weights: Tensor, grid: Tensor, sigma: float) -> Tensor:
    z = (grid - nodes[:, None]) / sigma
    return weights @ torch.exp(-0.5 * z**2) / (sigma * math.sqrt(2 * math.pi))
