# SPDX-License-Identifier: Apache-2.0
"""Objects that functions of the tests read."""

from __future__ import annotations

import torch


class Plain:
    """An object with numbers, a tensor and methods."""

    offset = 1.0

    def __init__(self):
        self.scale, self.weights = 2.0, torch.ones(3)

    def energy(self, x):
        return self.scale * self.shifted(x).sum() + sum(w * self.offset for w in self.weights)

    def shifted(self, x):
        return x[1:] - self.offset

    def __call__(self, x):
        return self.energy(x)


class Statistics:
    """An object that is called, with an attribute named as one of tensors."""

    def __init__(self):
        self.std = 2.0

    def __call__(self, x):
        return self.std * x.sum()
