# SPDX-License-Identifier: Apache-2.0
"""Masks: magnitude, optimal brain damage, and the exchange of kept for removed weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.apps.pruning.model import QuadraticModel
from hesse.apps.pruning.patterns import Pattern

_FEWEST = 0.005  # of the weights kept; exchanges of fewer are not worth a system
_STIFFER = 4.0


def magnitude(model: QuadraticModel, pattern: Pattern, sparsity: float) -> Tensor:
    """Keep the largest weights: a mask (n,), as all of these are."""
    return mask_of(model, pattern, model.w**2, sparsity)


def optimal_brain_damage(
    model: QuadraticModel, pattern: Pattern, sparsity: float, damping: float
) -> Tensor:
    """Remove where the increase by the diagonal alone, A_qq w_q^2 / 2 - g_q w_q, is least."""
    w, curvature = model.w, model.diagonal + damping
    return mask_of(model, pattern, 0.5 * curvature * w**2 - model.g * w, sparsity)


def mask_of(model: QuadraticModel, pattern: Pattern, score: Tensor, sparsity: float) -> Tensor:
    """The mask (n,) of what is kept when the lowest scores (n,) go."""
    keep = torch.ones_like(model.w, dtype=torch.bool)
    keep[pattern.prunable] = ~pattern.removed(score[pattern.prunable], sparsity)
    return keep


@dataclass
class Exchange:
    """Lower the model by exchanging kept for removed weights, with a repair after each exchange.

    The step is hard thresholding in the metric of the diagonal: with the gradient q of the damped
    model, z = w - q / (A_ii + mu) is what each weight would like to be by itself, and those stay
    whose (A_ii + mu) z_i^2 / 2, the loss by its removal or the gain by its return, is largest.
    An exchange that does not lower the model is tried again with an advantage for the kept ones.

    Args:
        model: what is lowered.
        pattern: which masks there are.
        sparsity: the share of weights removed.
        most: exchanges tried.
    """

    model: QuadraticModel
    pattern: Pattern
    sparsity: float
    most: int

    def from_mask(self, keep: Tensor, damping: float) -> tuple[Tensor, Tensor]:
        """The last mask, and the weights repaired with it."""
        w = self.model.repaired(keep, damping)
        value, q = self.model.increase(w, damping)
        advantage = 1.0
        for _ in range(self.most):
            new = self._exchanged(keep, w, q, damping, advantage)
            if int((new & ~keep).sum()) <= _FEWEST * int(keep.sum()):
                break
            other = self.model.repaired(new, damping)
            lower, slope = self.model.increase(other, damping)
            if lower < value:
                keep, w, value, q = new, other, lower, slope
            else:
                advantage *= _STIFFER
        return keep, w

    def _exchanged(
        self, keep: Tensor, w: Tensor, q: Tensor, damping: float, advantage: float
    ) -> Tensor:
        curvature = self.model.diagonal + damping
        positive = curvature > 0.0
        z = w - torch.where(positive, q / torch.where(positive, curvature, 1.0), 0.0)
        score = curvature * z**2
        score = torch.where(keep, advantage * score, score)
        return mask_of(self.model, self.pattern, score, self.sparsity)
