# SPDX-License-Identifier: Apache-2.0
"""`Posterior`: the Gaussian at the trained parameters, for a prior and a noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from hesse.apps.uncertainty.chosen import Chosen
from hesse.apps.uncertainty.observations import Observations
from hesse.apps.uncertainty.precision import Precision, Solver, Work
from hesse.apps.uncertainty.prior import Prior
from hesse.apps.uncertainty.structures import Curvature
from hesse.estimators.estimate import Estimate


@dataclass(frozen=True)
class Posterior:
    """N(theta, P^-1) with P = M beta A + D."""

    curvature: Curvature
    chosen: Chosen
    observations: Observations
    prior: Prior
    noise: float | None
    """s, of a regression."""
    temperature: float
    solver: Solver
    work: Work

    def at(self, values: Tensor | float, noise: float | None = None) -> Posterior:
        """The same with other prior precisions, and another noise if one is given."""
        noise = self.noise if noise is None else noise
        return replace(self, prior=self.prior.at(values), noise=noise)

    @property
    def scale(self) -> float:
        """M beta, by which A is multiplied."""
        beta = self.observations.precision(self.noise, self.temperature)
        return self.observations.number * beta

    @cached_property
    def precision(self) -> Precision:
        """P."""
        return Precision.of(
            *(self.curvature, self.chosen, self.scale, self.prior.delta, self.solver, self.work)
        )

    @cached_property
    def squares(self) -> Tensor:
        """|theta|^2 in each group of the prior."""
        return self.prior.sums(self.chosen.theta.double().square())

    @property
    def log_joint(self) -> float:
        """log p(D | theta) - theta' D theta / 2."""
        likelihood = self.observations.log_likelihood(self.noise, self.temperature)
        return likelihood - 0.5 * float(self.prior.values @ self.squares)

    @property
    def spectrum(self) -> Tensor | None:
        """The eigenvalues of A in float64, where they and one prior precision give all."""
        return self.curvature.spectrum if len(self.prior.names) == 1 else None

    @cached_property
    def effective_columns(self) -> Tensor:
        """Columns whose mean is `effective`, (g, k): several where it is estimated."""
        return self.precision.effective(self.prior.sums)

    @property
    def effective(self) -> Tensor:
        """gamma: how many parameters of each group the data determine, (g,)."""
        return self.effective_columns.mean(1)

    def evidence(self, **options: Any) -> Estimate:
        """log p(D) by Laplace's method; the options are those of `logdet`."""
        ratio = self.precision.log_ratio(**options)
        found = Estimate(
            self.log_joint - 0.5 * ratio.value,
            0.5 * ratio.standard_error,
            ratio.products,
            ratio.status,
            ratio.quantile,
            0.5 * ratio.rounding,
        )
        found.about = ratio.about
        return found
