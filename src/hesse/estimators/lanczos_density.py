# SPDX-License-Identifier: Apache-2.0
"""The density of eigenvalues by stochastic Lanczos quadrature, smoothed by a Gaussian."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hesse.errors import Status
from hesse.estimators.density import SpectralDensity, mean_and_error
from hesse.estimators.probed_density import Enough, ProbedDensity
from hesse.estimators.quadrature import Quadratures, vectors_held
from hesse.estimators.sampling import Sampler


class LanczosDensity(ProbedDensity):
    """The rules of the probes so far, `rules`, (probes, 2, steps): nodes and weights."""

    saved = ("generator", "products", "rules")

    def __init__(
        self, sampler: Sampler[Enough], steps: int, points: int, bandwidth: float | None
    ) -> None:
        super().__init__(sampler, min(steps, sampler.A.shape[0]), points)
        self.bandwidth = bandwidth
        self.rules = torch.empty(0, 2, self.steps, dtype=torch.float64)

    @property
    def count(self) -> int:
        return len(self.rules)

    @property
    def cost(self) -> int:
        return self.steps

    @property
    def held(self) -> int:
        return vectors_held(self.A.shape[0], self.steps)

    def take(self, probes: Tensor) -> None:
        quadratures = Quadratures(self.A, probes, self.sampler.block_size, self.sampler.call)
        quadratures.extend(self.steps)
        rules = [self._padded(*quadratures.rule(i)) for i in range(len(probes))]
        self.rules = torch.cat([self.rules, torch.stack(rules)])
        self.products += quadratures.products

    def _padded(self, nodes: Tensor, weights: Tensor) -> Tensor:
        """The rule with nodes of no weight where its process has ended early."""
        missing = self.steps - len(nodes)
        nodes = torch.cat([nodes, nodes[-1:].expand(missing)])
        return torch.stack([nodes, torch.cat([weights, weights.new_zeros(missing)])])

    def estimate(self, status: Status = Status.UNFINISHED) -> SpectralDensity | None:
        if self.count == 0:
            return None
        nodes, weights = self.rules.unbind(dim=1)
        sigma = self._width(nodes)
        low, high = float(nodes.min()) - 4 * sigma, float(nodes.max()) + 4 * sigma
        grid = torch.linspace(low, high, self.points, dtype=torch.float64)
        curves = torch.stack([_curve(rule, grid, sigma) for rule in self.rules])
        mean, error = mean_and_error(curves)
        return SpectralDensity(grid, mean, error, nodes, weights, sigma, self.products, status)

    def _width(self, nodes: Tensor) -> float:
        """The bandwidth: wide enough that the quadrature resolves it, unless given."""
        if self.bandwidth is not None:
            return self.bandwidth
        low, high = float(nodes.min()), float(nodes.max())
        scale = max(high - low, 1e-3 * max(abs(low), abs(high)), 1e-30)
        return max(0.01, 0.0 if self.steps >= self.A.shape[0] else 1 / self.steps) * scale


def _curve(rule: Tensor, grid: Tensor, sigma: float) -> Tensor:
    nodes, weights = rule
    z = (grid - nodes[:, None]) / sigma
    return weights @ torch.exp(-0.5 * z**2) / (sigma * math.sqrt(2 * math.pi))
