# SPDX-License-Identifier: Apache-2.0
"""Exact diagonals at one point after another, against those of products with unit vectors."""

import pytest
import torch
from torch import nn

import hesse
from hesse import Risk, fisher_operator, ggn_operator, gradient_covariance_operator

DOUBLE = torch.float64


def randn(*shape):
    return torch.randn(*shape, dtype=DOUBLE)


class Counted(nn.Module):
    """A perceptron that counts how often it is run."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
        self.runs = 0

    def forward(self, x):
        self.runs += 1
        return self.layers(x)


def is_right(A):
    ours, exact = hesse.diagonal(A).value, A.to_dense().diagonal()
    return bool((ours - exact).norm() <= 1e-12 * exact.norm())


MAKERS = {
    "Gauss-Newton": ggn_operator,
    "sampled": lambda risk: fisher_operator(risk, kind="sampled", samples=2),
    "empirical": lambda risk: fisher_operator(risk, kind="empirical"),
    "covariance": gradient_covariance_operator,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_most_points_take_no_forward_pass(kind):
    torch.manual_seed(0)
    model = Counted()
    batches = [(randn(n, 3), torch.randint(0, 3, (n,))) for n in (4, 4, 2)]
    risk = Risk(model, nn.CrossEntropyLoss(), batches)
    A, runs = MAKERS[kind](risk), []
    for _ in range(8):
        A = A.at({name: p + 0.1 * torch.randn_like(p) for name, p in risk.params.items()})
        before = model.runs
        found = hesse.diagonal(A).value
        runs.append(model.runs - before)
        exact = A.to_dense().diagonal()
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-13)
    assert runs[0] > 0
    assert 0 in runs
    assert sum(runs[4:]) < 2 * len(batches)


def test_what_is_written_to_is_seen():
    torch.manual_seed(0)
    weight, inputs = torch.rand(3, dtype=DOUBLE), randn(5, 3)
    risk = Risk(
        Counted(), nn.CrossEntropyLoss(weight=weight), (inputs, torch.tensor([0, 1, 2, 1, 0]))
    )
    A = ggn_operator(risk)
    for tensor in (weight, inputs, None):
        for _ in range(5):
            assert is_right(A.at(risk.params))
        if tensor is not None:
            tensor[0] *= 3.0


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2),
        nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1),
        nn.LSTM(7, 3, batch_first=True),
        nn.RNN(7, 3, batch_first=True, bias=False),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_blocks_of_vectors(layer):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = layer, nn.LazyLinear(3)

        def forward(self, x):
            y = self.layer(x)
            return self.head((y[0] if isinstance(y, tuple) else torch.tanh(y)).flatten(1))

    torch.manual_seed(0)
    model, x = Model().double(), randn(3, 4, 7)
    model(x)
    risk = Risk(model, nn.CrossEntropyLoss(), (x, torch.tensor([0, 2, 1])))
    A = ggn_operator(risk)
    exact = A.to_dense().diagonal()
    for _ in range(3):  # one vector at a time, then several
        torch.testing.assert_close(hesse.diagonal(A).value, exact, rtol=1e-10, atol=1e-13)
        A = A.at(risk.params)
