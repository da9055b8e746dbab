# SPDX-License-Identifier: Apache-2.0
"""Losses of independent entries that are no likelihoods of targets: robust losses and margins.

They have rows, weights and slopes, which is all that a covariance of gradients needs, and no
expectation over targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hesse.ad.likelihoods.entrywise import Entrywise, weights_of_entries
from hesse.ad.likelihoods.likelihood import Likelihood


@dataclass(frozen=True)
class WithoutDensity(Entrywise):
    """Rows of which the slopes for the observed targets alone are defined."""

    @property
    def information(self) -> Tensor:
        raise NotImplementedError

    def draw(self, uniform: Tensor) -> Tensor:
        raise NotImplementedError

    def entry_slope(self, y: Tensor) -> Tensor:
        raise NotImplementedError


def l1_loss(a: Mapping[str, Any], c: Tensor) -> Likelihood:
    """The rows of `F.l1_loss`, whose mean divides by the sum of the weights."""
    weight = a.get("weight")
    weights = weights_of_entries(a, c, weight=weight, weighted_mean=True)
    return WithoutDensity((a["input"],), *weights)


def of_entries(a: Mapping[str, Any], c: Tensor) -> Likelihood:
    """The rows of `F.huber_loss`, `F.smooth_l1_loss` and `F.soft_margin_loss`."""
    return WithoutDensity((a["input"],), *weights_of_entries(a, c, weight=a.get("weight")))
