# SPDX-License-Identifier: Apache-2.0
r"""The diagonal of what a few directions capture exactly, of the rest by Hutchinson's estimator.

$$ \operatorname{diag} A = \operatorname{diag}(QQ^T A) + \mathbb{E}\, z \odot (I - QQ^T) A z $$

Reference: Baston & Nakatsukasa 2022, arXiv:2201.10684.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hesse.estimators.deflation import Deflation
from hesse.estimators.estimate import Estimate
from hesse.estimators.estimator_run import EstimatorRun
from hesse.estimators.orthonormal import project_out
from hesse.estimators.probes import products
from hesse.methods import Hyperparameters


class _DeflatedDiagonal(Deflation):
    """diag A = diag(QQ'A) + the mean of z * (I - QQ') A z."""

    variance_factor = 1.0

    def plain_samples(self, probes: Tensor, images: Tensor) -> list[Tensor]:
        return list(probes * images)

    def captured(self, basis: Tensor) -> Tensor:
        images = products(self.A.T, basis, self.run.block_size)
        return (basis * images).sum(dim=0)

    def rest_samples(self, probes: Tensor) -> list[Tensor]:
        images = products(self.A, probes, self.run.block_size)
        return list(probes * project_out(self.space, self.state.basis, images))


@dataclass(frozen=True, repr=False)
class AutoDiagonal(Hyperparameters):
    """Deflate only where ten plain probes show that this saves products."""

    name: ClassVar[str] = "auto"

    def estimate_diagonal(self, run: EstimatorRun) -> Estimate:
        """The plain mean, or deflation and the mean of the rest."""
        return _DeflatedDiagonal(run, always=False).estimate()
