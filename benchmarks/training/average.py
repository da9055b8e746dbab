"""The mean of the last parameters, which are better than each where batches differ."""

from __future__ import annotations

import copy

import torch
from torch import nn

_POWER = 9
"""The mean is over about a tenth of the steps."""


class Average:
    """A model with the mean parameters of a run: the weight of step k is as k to the ninth power.

    Source: Shamir & Zhang 2013, arXiv:1212.1824, section 4.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model)

    @torch.no_grad()
    def take(self, model: nn.Module, steps: int) -> None:
        """Take the parameters after so many steps into the mean."""
        weight = (_POWER + 1) / (_POWER + steps)
        for mean, parameter in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(parameter, weight)
        for mean, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            mean.copy_(buffer)
