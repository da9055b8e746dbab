# SPDX-License-Identifier: Apache-2.0
"""A small network, its data, and losses that average over batches in several ways."""

import pytest
import torch
from torch import nn

X, Y = torch.randn(256, 4).double(), torch.randint(0, 3, (256,))
CLASS_WEIGHTS = torch.tensor([1.0, 5.0, 20.0]).double()


def class_weighted(z, y):
    return nn.functional.cross_entropy(z, y, weight=CLASS_WEIGHTS)


def batch_mean(z, y):
    return ((z - z.mean(0)) ** 2).sum(1).mean()


LOSSES = pytest.mark.parametrize(
    "loss", [class_weighted, batch_mean], ids=["class weights", "coupled"]
)


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def callable_of(model):
    return lambda params, inputs: torch.func.functional_call(model, params, (inputs,))


def parameters(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}
