# SPDX-License-Identifier: Apache-2.0
"""A small network and operators of it in every mode."""

import torch
from torch import nn

import hesse

DOUBLE = torch.float64
MODES = ["auto", "retained-graph", "traced-split"]
X = torch.linspace(-1.0, 1.3, 4, dtype=DOUBLE)
V = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=DOUBLE)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def data(seed=1):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(5, 4, generator=generator, dtype=DOUBLE)
    return inputs, torch.tensor([0, 1, 2, 1, 0])


def risk_of(model):
    return hesse.Risk(model, nn.CrossEntropyLoss(), data())


def near(params):
    return {name: 1.3 * p.detach() + 0.1 for name, p in params.items()}


def direction(risk):
    n = sum(p.numel() for p in risk.params.values())
    return torch.linspace(-1.0, 1.0, n, dtype=DOUBLE)


def operator(f, x, mode="auto"):
    """With programs recorded at once under "auto" too."""
    H = hesse.hessian_operator(f, x, mode=mode)
    H.announce(1000)
    return H


def assert_close(a, b, tolerance=1e-12):
    assert a.shape == b.shape
    assert float((a - b).norm()) <= tolerance * float(b.norm())


def assert_like(model, twin, modes=MODES, tolerance=1e-12):
    """The products of a model at two points are those of its twin, whose parameters are alike."""
    ours, plain = risk_of(model), risk_of(twin)
    v = direction(plain)
    for x, y in [(ours.params, plain.params), (near(ours.params), near(plain.params))]:
        expected = hesse.hvp(plain, y, v)
        assert_close(hesse.hvp(ours, x, v), expected, tolerance)
        for mode in modes:
            assert_close(operator(ours, x, mode) @ v, expected, tolerance)
        expected = hesse.ggn_operator(plain, y) @ v
        assert_close(hesse.ggn_operator(ours, x) @ v, expected, tolerance)


class Apply(nn.Module):
    """A module that calls a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def net_with(function):
    model = net()
    model[1] = Apply(function)
    return model
