# SPDX-License-Identifier: Apache-2.0
"""K-FAC and EK-FAC of models and data in many forms; what cannot be traced is refused."""

import cProfile
import pstats
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hesse import Risk, ekfac_operator, ggn_operator, kfac_operator
from hesse.testing.factored import (
    CE,
    against_blocks,
    classes,
    mlp,
)
from hesse.testing.likelihoods import normal

DOUBLE = torch.float64
EXACT = 1e-12


@pytest.mark.some_cases(5)
@pytest.mark.fast_cases(5)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(4))
def test_low_precision_models_have_factors_in_float32(dtype, seed):
    torch.manual_seed(seed)
    model, (x, y) = mlp(), classes(40, 4)
    exact = Risk(model, CE, (x, y))
    low = Risk(deepcopy(model).to(dtype), CE, (x.to(dtype), y))
    for make in (kfac_operator, ekfac_operator):
        K, expected = make(low), make(exact).to_dense().float()
        assert K.dtype == torch.float32
        assert not K.coverage.without_rule
        assert (K.to_dense() - expected).norm() < 0.1 * expected.norm()


def test_inputs_by_name_and_a_loss_inside_the_model():
    class OwnLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(2, 4)

        def forward(self, left, right, labels):
            logits = torch.tanh(self.a(left)) + self.b(right)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    batch = {"left": normal(12, 3), "right": normal(12, 2), "labels": torch.randint(0, 4, (12,))}
    risk = Risk(OwnLoss().double(), lambda out, _: out["loss"], [batch])
    E, G = ekfac_operator(risk), ggn_operator(risk).to_dense()
    assert not E.coverage.without_rule
    for _, ours, block in against_blocks(E, G):
        torch.testing.assert_close(ours.trace(), block.trace())


def test_outputs_in_which_time_comes_first():
    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.LSTM(3, 4), nn.Linear(4, 5)

        def forward(self, x):  # (batch, time, 3) -> (time, batch, 5)
            return self.head(self.cell(x.transpose(0, 1))[0])

    def loss(outputs, targets):
        return F.cross_entropy(outputs.flatten(0, 1), targets.T.flatten())

    data = normal(6, 4, 3), torch.randint(0, 5, (6, 4))
    risk = Risk(TimeFirst().double(), loss, [data])
    E, G = ekfac_operator(risk), ggn_operator(risk).to_dense()
    for _, ours, block in against_blocks(E, G):
        torch.testing.assert_close(ours.trace(), block.trace())


@pytest.mark.parametrize("make", [kfac_operator, ekfac_operator])
def test_a_batch_of_one_example_with_one_output(make):
    """Its transpose is itself, which torch does not take."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    x, y = torch.randn(5, 3, dtype=DOUBLE), torch.randn(5, 1, dtype=DOUBLE)
    K = make(Risk(model, nn.MSELoss(), [(x[:4], y[:4]), (x[4:], y[4:])]))
    whole = make(Risk(model, nn.MSELoss(), (x, y))).to_dense()
    assert (K.to_dense() - whole).norm() < EXACT * whole.norm()


class _WithEmpty(nn.Sequential):
    """Some layers and a parameter without entries."""

    def __init__(self, *layers):
        super().__init__(*layers)
        self.none = nn.Parameter(torch.zeros(2, 0))

    def forward(self, x):
        return super().forward(x) + self.none.sum()


@pytest.mark.parametrize("make", [kfac_operator, ekfac_operator])
def test_a_parameter_without_entries_has_no_block(make):
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    data = torch.randn(5, 3, dtype=DOUBLE), torch.randn(5, 2, dtype=DOUBLE)
    K, wanted = (
        make(Risk(model.double(), nn.MSELoss(), data))
        for model in (_WithEmpty(layer), nn.Sequential(deepcopy(layer)))
    )
    torch.testing.assert_close(K.to_dense(), wanted.to_dense())


def test_a_model_that_cannot_be_traced_is_refused():
    from hesse.errors import FunctionError

    class Random(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x + torch.poisson(x.abs() * 0.0))

    risk = Risk(Random(), nn.MSELoss(), (torch.randn(5, 3), torch.randn(5, 2)))
    with pytest.raises(FunctionError, match="can be traced"):
        kfac_operator(risk)


def test_example_weights():
    x, y = classes(12, 4)
    weights = torch.rand(12, dtype=DOUBLE)
    risk = Risk(mlp(), CE, (x, y)).weighted(weights)
    E, G = ekfac_operator(risk), ggn_operator(risk).to_dense()
    for _, ours, block in against_blocks(E, G):
        torch.testing.assert_close(ours.trace(), block.trace())


@pytest.mark.slow
def test_the_cost_to_set_up_is_linear_in_the_number_of_layers():
    def calls(layers):
        parts = [part for _ in range(layers) for part in (nn.Linear(4, 4), nn.Tanh())]
        risk = Risk(nn.Sequential(*parts), nn.MSELoss(), (torch.randn(5, 4), torch.randn(5, 4)))
        with cProfile.Profile() as profile:
            kfac_operator(risk, risk.params)
        return pstats.Stats(profile).total_calls  # pyright: ignore[reportAttributeAccessIssue]

    calls(2)  # what is done once in a process
    assert calls(160) <= 4.4 * calls(40)
