# SPDX-License-Identifier: Apache-2.0
"""What is learnt of a model and a loss at a start where they show little holds at other points."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from hesse import Risk
from hesse.errors import DataError, FunctionError

DOUBLE = {"dtype": torch.float64}
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(7, 3, generator=GENERATOR)
Y = torch.tensor([0, 1, 2, 1, 0, 2, 2])
CLASS_WEIGHTS = torch.tensor([1.0, 5.0, 10.0])


def at_zero(dtype=torch.float64):
    """A linear classifier at zero, whose outputs and losses are alike for all examples."""
    model = nn.Linear(3, 3, dtype=dtype)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model


def with_penalty(outputs, targets):
    return F.cross_entropy(outputs, targets) + 0.1 * outputs.square().mean()


def coupled(outputs, targets):
    return F.cross_entropy(outputs, targets) + (outputs - outputs.mean(0)).square().mean()


def class_weighted(outputs, targets):
    weights = CLASS_WEIGHTS.to(outputs)[targets]
    losses = -outputs.log_softmax(1).gather(1, targets[:, None])[:, 0]
    return (weights * losses).sum() / weights.sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_term_that_is_zero_at_the_start_is_no_row_of_a_loss(dtype):
    model, x = at_zero(dtype), X.to(dtype)
    risk = Risk(model, with_penalty, (x, Y))
    with pytest.raises(FunctionError, match="something else than a mean or a sum of their rows"):
        risk.weighted(torch.ones(7))
    point = {name: torch.full_like(p, 0.3).cumsum(0) for name, p in risk.params.items()}
    with pytest.warns(match="one at a time"):
        ours = risk.per_example.losses(point)
    logits = functional_call(model, point, (x,))
    theirs = [with_penalty(z[None], y[None]) for z, y in zip(logits, Y, strict=True)]
    torch.testing.assert_close(ours, torch.stack(theirs).to(ours))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", [coupled, class_weighted])
def test_a_start_at_which_all_losses_are_alike_hides_no_wrong_average(dtype, loss):
    x = X.to(dtype)
    with pytest.raises(DataError, match="losses combine to the loss of the whole"):
        Risk(at_zero(dtype), loss, [(x[:3], Y[:3]), (x[3:], Y[3:])])


def test_examples_that_a_loss_couples_are_found_at_a_start_at_zero():
    risk = Risk(at_zero(), coupled, (X.double(), Y))
    with pytest.raises(FunctionError):
        risk.per_example.losses(risk.params)


class WithCovariance(nn.Module):
    """A model that has no value where its second parameter is not positive definite."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2, **DOUBLE)
        self.covariance = nn.Parameter(1e-3 * torch.eye(2, **DOUBLE))

    def forward(self, x):
        return self.linear(x) @ torch.linalg.cholesky(self.covariance)


def test_a_model_that_fails_nearby_is_tested_at_its_parameters():
    model, x, y = WithCovariance(), X.double(), X[:, :2].double()
    risk = Risk(model, nn.MSELoss(), [(x[:3], y[:3]), (x[3:], y[3:])])
    losses = (functional_call(model, risk.params, (x,)) - y).square().mean(1)
    torch.testing.assert_close(risk.per_example.losses(risk.params), losses.detach())
