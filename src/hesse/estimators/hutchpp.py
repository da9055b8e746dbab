# SPDX-License-Identifier: Apache-2.0
r"""Hutch++: the trace on a few directions exactly, on the rest by Hutchinson's estimator.

$$ \operatorname{tr} A = \operatorname{tr} Q^T A Q + \mathbb{E}\, w^T A w, \qquad
   w = (I - QQ^T) z $$

`deflation` finds Q and decides how large it becomes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hesse.estimators.deflation import Deflation
from hesse.estimators.estimate import Estimate
from hesse.estimators.estimator_run import EstimatorRun
from hesse.estimators.orthonormal import project_out
from hesse.estimators.probes import quadratic_forms
from hesse.methods import Hyperparameters


class _DeflatedTrace(Deflation):
    """tr A = tr Q'AQ + the mean of w'A w."""

    variance_factor = 2.0

    def plain_samples(self, probes: Tensor, images: Tensor) -> list[float]:
        return self.space.inner_pairs(*zip(probes, images, strict=True))

    def captured(self, basis: Tensor) -> float:
        return sum(quadratic_forms(self.A, basis, self.run.block_size))

    def rest_samples(self, probes: Tensor) -> list[float]:
        tested = project_out(self.space, self.state.basis, probes)
        return quadratic_forms(self.A, tested, self.run.block_size)


@dataclass(frozen=True, repr=False)
class HutchPP(Hyperparameters):
    """Hutch++: Q is the range of A Z for random signs Z, as many as save products.

    Unbiased. Q grows by ten directions at a time, as long as that saves more products than it
    takes.

    Cost: 2 products and a vector for each direction of Q, three more vectors for each of ten while
        it grows (fewer for blocks of less than eight), then one product a probe.

    References: Meyer, Musco, Musco & Woodruff 2021, doi:10.1137/1.9781611976496.16; Persson,
        Cortinovis & Kressner 2022, doi:10.1137/21M1447623.

    >>> import torch
    >>> from hesse.estimators import trace
    >>> round(trace(torch.ones(20, 20), method=HutchPP()).value, 4)    # of rank one: exact
    20.0
    """

    name: ClassVar[str] = "hutch++"

    def estimate_trace(self, run: EstimatorRun) -> Estimate:
        """Deflate, then sample the rest."""
        run.limits.require(4, "method='hutch++' takes")  # a direction, and a sample of the rest
        return _DeflatedTrace(run, always=True).estimate()


@dataclass(frozen=True, repr=False)
class AutoTrace(Hyperparameters):
    """Deflate only where ten plain probes show that this saves products."""

    name: ClassVar[str] = "auto"

    def estimate_trace(self, run: EstimatorRun) -> Estimate:
        """The plain mean, or deflation and the mean of the rest."""
        return _DeflatedTrace(run, always=False).estimate()
