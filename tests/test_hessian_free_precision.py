# SPDX-License-Identifier: Apache-2.0
"""`HessianFree` where matrix products are in bfloat16, by autocast around it or in the model."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from torch import nn

import hesse
from hesse.optimize import HessianFree

STEPS = 25


class InBfloat16(nn.Module):
    """A model that casts by itself."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.model(x).float()


def data():
    """A low-dimensional surface in 20 dimensions."""
    generator = torch.Generator().manual_seed(0)
    code = torch.randn(200, 3, generator=generator)
    return torch.sin(code @ torch.randn(3, 20, generator=generator))


def network():
    torch.manual_seed(0)
    widths = [20, 16, 3, 16, 20]
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], layers[2], nn.Tanh(), layers[3])


def loss_of(plain):
    """In float32."""
    x = data()
    with torch.no_grad():
        return float(nn.functional.mse_loss(plain(x), x))


def final_loss(model, around=nullcontext, **options):
    """Of the model in float32, after some steps on the same data."""
    x = data()
    optimizer = HessianFree(hesse.Risk(model, nn.MSELoss(), (x, x)), **options)
    for _ in range(STEPS):
        with around():
            optimizer.step()
    return loss_of(model.model if isinstance(model, InBfloat16) else model)


@pytest.mark.parametrize("mode", ["traced-split", "retained-graph"])
@pytest.mark.parametrize("iterations", [0, 10])
def test_bfloat16_ends_near_float32(mode, iterations):
    """The rounding of products is an error of 0.4 %, which the damping and the ratio must bear."""
    options = {"mode": mode, "max_cg_iterations": iterations}
    exact = final_loss(network(), **options)
    around = final_loss(network(), lambda: torch.autocast("cpu", torch.bfloat16), **options)
    within = final_loss(InBfloat16(network()), **options)
    assert exact < 0.3 * loss_of(network())
    assert around < 1.2 * exact
    assert within < 1.2 * exact


def test_parameters_and_state_stay_in_float32():
    model, x = network(), data()
    optimizer = HessianFree(hesse.Risk(model, nn.MSELoss(), (x, x)), max_cg_iterations=0)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            optimizer.step()
    tensors = [*model.parameters()]
    for state in optimizer.state_dict()["state"].values():
        tensors += [part for part in state.values() if isinstance(part, torch.Tensor)]
    assert all(tensor.dtype == torch.float32 for tensor in tensors)
