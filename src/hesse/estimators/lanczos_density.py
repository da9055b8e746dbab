# SPDX-License-Identifier: Apache-2.0
"""The density of eigenvalues by stochastic Lanczos quadrature, smoothed by a Gaussian."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hesse.errors import Status, check_count, check_positive
from hesse.estimators.density import SpectralDensity, mean_and_error
from hesse.estimators.density_run import DensityCriterion, DensitySampler
from hesse.estimators.estimator_run import EstimatorRun
from hesse.estimators.quadrature import Quadratures, pack, unpack, vectors_held
from hesse.krylov.lanczos_process import LONG
from hesse.methods import Hyperparameters
from hesse.progress import uninterrupted


@dataclass(frozen=True, repr=False)
class LanczosDensity(Hyperparameters):
    r"""Stochastic Lanczos quadrature, a method of `spectral_density` that resolves outliers.

    $$ \phi_\sigma(t) \approx \frac1m \sum_{j=1}^m \sum_k w_{jk}\, g_\sigma(t - \theta_{jk}) $$

    with theta_jk the Ritz values and w_jk the squared first components of the eigenvectors of the
    Lanczos matrix started from the j-th random vector of signs, and g a Gaussian of width sigma.

    Args:
        steps: Lanczos steps a probe.
        bandwidth: sigma; default one hundredth of the range of the Ritz values, but not below one
            step's fraction of it: the quadrature does not resolve anything narrower, and the band
            of uncertainty would not show that.

    Cost: steps products a probe; 4 vectors for each probe that advances, 3 for a single one (for
        n < 4096, where vectors are short, as many more as there are steps).

    References: Lin, Saad & Yang 2016, doi:10.1137/130934283; Ghorbani, Krishnan & Xiao 2019,
        arXiv:1901.10159.

    >>> from hesse.estimators import spectral_density
    >>> A = torch.diag(torch.tensor([-1.0, 1.0, 3.0]))
    >>> spectral_density(A, method=LanczosDensity(bandwidth=0.1)).bandwidth
    0.1
    """

    steps: int = 64
    bandwidth: float | None = None
    name: ClassVar[str] = "lanczos"

    def _check(self) -> None:
        self._set(steps=check_count("steps", self.steps, 1))
        if self.bandwidth is not None:
            check_positive(bandwidth=self.bandwidth)

    @property
    def products_per_probe(self) -> int:
        """What a probe takes at most."""
        return self.steps

    @property
    def run_key(self) -> Mapping[str, Any]:
        """Without the bandwidth, which the samples do not depend on."""
        return {"method": self.name, "steps": self.steps}

    def estimate_density(self, run: EstimatorRun[DensityCriterion], points: int) -> SpectralDensity:
        """The density on so many points."""
        return _LanczosSampler(run, self.steps, points, self.bandwidth).sample()


class _LanczosSampler(DensitySampler):
    """The quadrature rules of the probes so far, `rules`, (probes, 2, steps): nodes and weights.

    `block` holds the Lanczos processes of the probes that are not complete.
    """

    saved = ("generator", "products", "rules", "block")

    def __init__(
        self,
        run: EstimatorRun[DensityCriterion],
        steps: int,
        points: int,
        bandwidth: float | None,
    ) -> None:
        super().__init__(run, min(steps, run.A.domain.n), points)
        self.bandwidth = bandwidth
        self.rules = torch.empty(0, 2, self.steps, dtype=torch.float64)
        self._quadratures: Quadratures | None = None

    @property
    def count(self) -> int:
        return len(self.rules)

    @property
    def cost(self) -> int:
        return self.steps

    @property
    def held(self) -> int:
        n = self.A.domain.n
        return 4 if n >= LONG else vectors_held(n, self.steps)  # the probe is not kept

    @property
    def block(self) -> list[list[Any]]:
        """The processes of the block, as a checkpoint saves them."""
        quadratures = self._quadratures
        return [] if quadratures is None else [pack(process) for process in quadratures.processes]

    @block.setter
    def block(self, states: list[list[Any]]) -> None:
        self._quadratures = None
        if states:
            self._quadratures = Quadratures(self.A, [], self.run.block_size)
            self._quadratures.processes = [unpack(self.A, state) for state in states]
            self._quadratures.make_room(self.steps)

    @property
    def is_begun(self) -> bool:
        return self._quadratures is not None

    def begin(self, probes: Tensor) -> None:
        self._quadratures = Quadratures(self.A, probes, self.run.block_size)
        self._quadratures.make_room(self.steps)

    def advance(self) -> bool:
        quadratures = self._quadratures
        assert quadratures is not None
        before = quadratures.products
        try:
            if quadratures.step(self.steps):
                return True
        finally:
            self.products += quadratures.products - before
        with uninterrupted():
            self.rules, self._quadratures = torch.cat([self.rules, self._rules(quadratures)]), None
        return False

    def _rules(self, quadratures: Quadratures) -> Tensor:
        rules = [quadratures.rule(i) for i in range(len(quadratures.processes))]
        return torch.stack([self._padded(*rule) for rule in rules])

    def _padded(self, nodes: Tensor, weights: Tensor) -> Tensor:
        """The rule, with nodes of weight zero where its process has ended early."""
        missing = self.steps - len(nodes)
        nodes = torch.cat([nodes, nodes[-1:].expand(missing)])
        return torch.stack([nodes, torch.cat([weights, weights.new_zeros(missing)])])

    def estimate(self, status: Status = Status.UNFINISHED) -> SpectralDensity | None:
        rules, block = self.rules, self._quadratures
        if self.count == 0:
            if block is None or min(process.size for process in block.processes) == 0:
                return None
            rules = self._rules(block)
        nodes, weights = rules.unbind(dim=1)
        sigma = self._width(nodes)
        low, high = float(nodes.min()) - 4 * sigma, float(nodes.max()) + 4 * sigma
        grid = torch.linspace(low, high, self.points, dtype=torch.float64)
        curves = torch.stack([_curve(rule, grid, sigma) for rule in rules])
        mean, error = mean_and_error(curves)
        return SpectralDensity(grid, mean, error, nodes, weights, sigma, self.products, status)

    def _width(self, nodes: Tensor) -> float:
        """The bandwidth; by default wide enough for the quadrature to resolve it."""
        if self.bandwidth is not None:
            return self.bandwidth
        low, high = float(nodes.min()), float(nodes.max())
        scale = max(high - low, 1e-3 * max(abs(low), abs(high)), 1e-30)
        return max(0.01, 0.0 if self.steps >= self.A.domain.n else 1 / self.steps) * scale


def _curve(rule: Tensor, grid: Tensor, sigma: float) -> Tensor:
    nodes, weights = rule
    z = (grid - nodes[:, None]) / sigma
    return weights @ torch.exp(-0.5 * z**2) / (sigma * math.sqrt(2 * math.pi))
