# SPDX-License-Identifier: Apache-2.0
r"""Hutch++: the trace inside a few directions exactly, outside them by Hutchinson's estimator.

$$ \operatorname{tr} A = \operatorname{tr} Q^T A Q + \mathbb{E}\, w^T A w, \qquad
   w = (I - QQ^T) z $$

How Q is found, and when it is large enough: `deflation`.
"""

from __future__ import annotations

from torch import Tensor

from hesse.estimators.deflation import Deflation
from hesse.estimators.orthonormal import project_out
from hesse.estimators.probes import forms


class TraceDeflation(Deflation):
    """tr A = tr Q'AQ + the mean of w'A w."""

    spread = 2.0

    def plain(self, probes: Tensor, images: Tensor) -> list[float]:
        return [self.A.domain.inner(z, Az) for z, Az in zip(probes, images, strict=True)]

    def captured(self, basis: Tensor) -> float:
        return sum(forms(self.A, basis, self.sampler.block_size, self.sampler.call))

    def rest(self, probes: Tensor) -> list[float]:
        tested = project_out(self.A, self.state.basis, probes)
        return forms(self.A, tested, self.sampler.block_size, self.sampler.call)
