# SPDX-License-Identifier: Apache-2.0
"""A small network, its data and its risk, and a tracker without a budget."""

import torch
from torch import nn

from hesse import Risk
from hesse.apps import CurvatureTracker

N, DECAY = 21, 0.05
FLOAT = {"dtype": torch.float64}
CE = nn.CrossEntropyLoss()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def data():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(N, 4, generator=g, **FLOAT)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()


X, Y = data()
BATCHES = [(X[:8], Y[:8]), (X[8:], Y[8:])]


def risk(model=None):
    return Risk(model or net(), CE, BATCHES, weight_decay=DECAY)


def forever(**options):
    return CurvatureTracker(risk(), budget=None, **options)
