# SPDX-License-Identifier: Apache-2.0
"""K-FAC and EK-FAC where they are exact: equal to blocks of the GGN, or to a definition."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hesse import Risk, ekfac_operator, ggn_operator, kfac_operator
from hesse.testing.factored import (
    block_errors,
    linear,
    mlp,
)
from hesse.testing.likelihoods import normal

DOUBLE = torch.float64
EXACT = 1e-12


def assert_block_diagonal(K):
    """All of K outside of its blocks is zero."""
    dense = K.to_dense()
    for block in K.blocks:
        index = block.place.take(torch.arange(len(dense)))
        dense[index[:, None], index] = 0.0
    assert not dense.any()


class MeanOverTokens(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x).mean(1)


# -- Where it is exact -----------------------------------------------------------------------------


EXACT_CASES = {
    "deep linear": (lambda: linear(4, 5, 3), nn.MSELoss(), (40, 4), (40, 3), "expand"),
    "deep linear with biases": (
        lambda: linear(4, 5, 3, bias=True), nn.MSELoss(), (40, 4), (40, 3), "expand",
    ),
    "tokens": (lambda: linear(4, 5, 3), nn.MSELoss(), (9, 6, 4), (9, 6, 3), "expand"),
    "sums": (lambda: linear(4, 5, 3), nn.MSELoss(reduction="sum"), (9, 4), (9, 3), "expand"),
    "mean over tokens": (
        lambda: MeanOverTokens(linear(4, 5, 3)), nn.MSELoss(), (10, 6, 4), (10, 3), "reduce",
    ),
    "mean over tokens, biases": (
        lambda: MeanOverTokens(linear(4, 5, 3, bias=True)),
        nn.MSELoss(), (10, 6, 4), (10, 3), "reduce",
    ),
}  # fmt: skip


@pytest.mark.some_cases(8)
@pytest.mark.parametrize("make", [kfac_operator, ekfac_operator])
@pytest.mark.parametrize("case", EXACT_CASES)
def test_it_is_the_block_of_the_ggn_of_a_deep_linear_network(case, make):
    model, loss, x, y, approximation = EXACT_CASES[case]
    risk = Risk(model(), loss, (normal(*x), normal(*y)))
    K = make(risk, approximation=approximation)
    found = block_errors(K, ggn_operator(risk).to_dense())
    assert len(found) == 2
    assert max(found.values()) < EXACT
    assert_block_diagonal(K)


def test_expand_is_not_exact_where_reduce_is():
    model = MeanOverTokens(linear(4, 5, 3))
    risk = Risk(model, nn.MSELoss(), (normal(10, 6, 4), normal(10, 3)))
    G = ggn_operator(risk).to_dense()
    assert min(block_errors(kfac_operator(risk), G).values()) > 0.1


@pytest.mark.some_cases(7)
@pytest.mark.fast_cases(4)
@pytest.mark.parametrize("make", [kfac_operator, ekfac_operator])
@pytest.mark.parametrize(
    ("model", "x", "loss", "target"),
    [
        (mlp, (1, 4), nn.CrossEntropyLoss(), torch.tensor([1])),
        (mlp, (1, 4), nn.BCEWithLogitsLoss(), torch.tensor([[1.0, 0.0, 0.3]], dtype=DOUBLE)),
        (mlp, (1, 4), nn.CrossEntropyLoss(label_smoothing=0.1), torch.tensor([2])),
        (
            lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6, 3)),
            (1, 4, 3, 3), nn.CrossEntropyLoss(), torch.tensor([0]),
        ),
        (
            lambda: nn.Sequential(nn.Conv1d(2, 3, 4), nn.Tanh(), nn.Flatten(), nn.Linear(3, 3)),
            (1, 2, 4), nn.CrossEntropyLoss(), torch.tensor([0]),
        ),
        (
            lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(3, 3)),
            (1, 2, 2, 2, 2), nn.CrossEntropyLoss(), torch.tensor([0]),
        ),
    ],
)  # fmt: skip
def test_it_is_exact_for_one_example_without_sharing(model, x, loss, target, make):
    risk = Risk(model().double(), loss, (normal(*x), target))
    assert max(block_errors(make(risk), ggn_operator(risk).to_dense()).values()) < EXACT


def test_the_last_layer_is_exact_for_squared_error():
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    risk = Risk(model, nn.MSELoss(), (normal(30, 3), normal(30, 2)))
    found = block_errors(kfac_operator(risk), ggn_operator(risk).to_dense())
    assert found["2.weight"] < EXACT
    assert found["0.weight"] > 1e-3


@pytest.mark.parametrize("make", [kfac_operator, ekfac_operator])
def test_a_grouped_convolution_is_exact_in_the_blocks_of_its_groups(make):
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.Tanh(), nn.Flatten())
    risk = Risk(model.double(), nn.CrossEntropyLoss(), (normal(1, 4, 3, 3), torch.tensor([1])))
    K, G = make(risk).to_dense(), ggn_operator(risk).to_dense()
    half = len(G) // 2
    own = torch.block_diag(G[:half, :half], G[half:, half:])
    assert (K - own).norm() < EXACT * own.norm()
    assert (K - G).norm() > 0.1 * G.norm()


def test_biases_and_norms_without_a_weight_are_exact():
    class Shifts(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Linear(4, 5, bias=False), nn.LayerNorm(5)
            self.rms, self.batch = nn.RMSNorm(5), nn.BatchNorm1d(5)
            self.group = nn.GroupNorm(1, 5)
            self.temperature = nn.Parameter(torch.tensor(0.3))

        def forward(self, x):
            h = self.group(self.batch(self.rms(self.norm(self.first(x)))[:, :, None]))[:, :, 0]
            return torch.tanh(h) * self.temperature.exp()

    model = Shifts().double().eval()
    model.batch.running_var.fill_(0.7)
    risk = Risk(model, nn.CrossEntropyLoss(), (normal(20, 4), torch.randint(0, 5, (20,))))
    found = block_errors(kfac_operator(risk), ggn_operator(risk).to_dense())
    assert len(found) >= 7
    assert max(error for name, error in found.items() if name != "first.weight") < EXACT


# -- Several uses ----------------------------------------------------------------------------------


def by_partial_traces(uses):
    """The Kronecker product for sum_k V_k x W_k, by its definition with partial traces."""
    total = sum(V.trace() * W.trace() for V, W in uses)
    left = sum(W.trace() * V for V, W in uses)
    right = sum(V.trace() * W for V, W in uses)
    return torch.kron(left, right) / total


def test_a_tied_weight_has_the_partial_traces_of_its_uses():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.W = nn.Parameter(normal(4, 2))

        def forward(self, x):
            return torch.tanh(x @ self.W) @ self.W.T

    x, model = normal(15, 4), Tied()
    K = kfac_operator(Risk(model, nn.MSELoss(), (x, normal(15, 4)))).to_dense()
    W = model.W.detach()
    h, H = torch.tanh(x @ W), 2.0 / (15 * 4)  # the Hessian of the loss is a multiple of I
    S_first = torch.zeros(2, 2, dtype=DOUBLE)
    for c in range(4):
        g = W[c] * (1 - h**2)
        S_first += H * g.T @ g
    first = (x.T @ x / 15, S_first)
    second = (H * 15 * torch.eye(4, dtype=DOUBLE), h.T @ h / 15)
    expected = by_partial_traces([first, second])
    torch.testing.assert_close(K, expected)


def test_the_recurrent_weight_has_the_partial_traces_of_its_steps():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.U, self.W = nn.Parameter(normal(3, 2)), nn.Parameter(normal(3, 3) / 2)

        def forward(self, x):
            h = x.new_zeros(len(x), 3)
            for t in range(x.shape[1]):
                h = torch.tanh(F.linear(x[:, t], self.U) + F.linear(h, self.W))
            return h

    x, model = normal(8, 3, 2), Recurrent()
    risk = Risk(model, nn.MSELoss(), (x, normal(8, 3)))
    K = kfac_operator(risk).block("W").to_dense()
    h, hs, s = torch.zeros(8, 3, dtype=DOUBLE), [], []
    W = model.W.detach()
    for t in range(3):
        hs.append(h)
        s.append((F.linear(x[:, t], model.U) + F.linear(h, W)).detach().requires_grad_())
        h = torch.tanh(s[-1]).detach()
    uses = []
    for t in range(1, 3):  # the first step multiplies W by zero: no derivative
        state = s[t]
        out = torch.tanh(state)
        for later in range(t + 1, 3):
            out = torch.tanh(F.linear(x[:, later], model.U.detach()) + F.linear(out, W))
        S = torch.zeros(3, 3, dtype=DOUBLE)
        for c in range(3):
            (g,) = torch.autograd.grad(out[:, c].sum(), state, retain_graph=True)
            S += 2.0 / (8 * 3) * g.T @ g
        uses.append((S, hs[t].T @ hs[t] / 8))
    torch.testing.assert_close(K, by_partial_traces(uses))
