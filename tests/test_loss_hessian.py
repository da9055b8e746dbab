# SPDX-License-Identifier: Apache-2.0
"""Losses and outputs that a Gauss-Newton product cannot be taken through, or that surprise."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hesse.curvature import ggn_operator, hessian_operator
from hesse.errors import DerivativeError, FallbackWarning, FunctionError
from hesse.risk.risk import Risk
from hesse.vectors.inner_products import norm

DOUBLE = torch.float64
MODES = ["auto", "retained-graph", "traced-split"]


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def risk_of(loss, targets=None, model=None):
    targets = draw(6, 3, seed=1) if targets is None else targets
    return Risk(model or net(), loss, (draw(6, 4), targets))


def product(risk, mode="auto", operator=ggn_operator):
    A = operator(risk, risk.params, mode=mode)
    return A @ torch.ones(A.shape[0], dtype=DOUBLE)


# --------------------------------------------------------------------------------------------------
# Without a second derivative


class Bag(nn.Module):
    """The mean of embeddings, by an operation that torch differentiates only once."""

    def __init__(self):
        super().__init__()
        self.bag = nn.EmbeddingBag(5, 3, dtype=DOUBLE)

    def forward(self, x):
        offsets = torch.arange(0, x.numel(), x.shape[1])
        indices, weight = x.flatten(), self.bag.weight
        return torch.ops.aten.embedding_bag(weight, indices, offsets, False, 1)[0].tanh()


def without_second_derivative(name):
    if name == "multi_margin_loss":
        return risk_of(torch.ops.aten.multi_margin_loss, torch.arange(6) % 3)
    return Risk(Bag(), nn.MSELoss(), (torch.arange(12).view(6, 2) % 5, draw(6, 3)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["multi_margin_loss", "embedding_bag"])
def test_an_operation_without_a_second_derivative_is_named(name, mode):
    risk = without_second_derivative(name)
    with pytest.raises(DerivativeError, match=f"derivative for .*{name}.* is not impl") as caught:
        product(risk, mode)
    assert "hessian_operator(risk, params)" in caught.value.remedy
    with pytest.warns(FallbackWarning):  # which is a way that works
        assert torch.isfinite(product(risk, operator=hessian_operator)).all()


# --------------------------------------------------------------------------------------------------
# A custom loss


class Logits(torch.autograd.Function):
    """log(1 + exp z), with a backward pass that torch can differentiate."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return F.softplus(z)

    @staticmethod
    def backward(ctx, grad):
        return torch.sigmoid(ctx.saved_tensors[0]) * grad


class KernelLogits(Logits):
    """The same with a backward pass that a foreign kernel computes."""

    @staticmethod
    def backward(ctx, grad):
        (z,) = ctx.saved_tensors
        return torch.sigmoid(z.detach().clone()) * grad


def test_a_custom_loss_is_compared_with_differences():
    expected = product(risk_of(lambda z, y: F.softplus(z * y).square().mean()))
    ours = product(risk_of(lambda z, y: Logits.apply(z * y).square().mean()))
    assert norm(ours - expected) <= 1e-14 * norm(expected)
    with pytest.raises(DerivativeError, match="KernelLogits cannot be differentiated"):
        product(risk_of(lambda z, y: KernelLogits.apply(z * y).square().mean()))


def test_a_custom_loss_is_not_recorded():
    with pytest.raises(DerivativeError, match="Logits is foreign"):
        product(risk_of(lambda z, y: Logits.apply(z * y).square().mean()), "traced-split")


# --------------------------------------------------------------------------------------------------
# Changed in place


@pytest.mark.parametrize("mode", MODES)
def test_a_loss_may_change_its_outputs_in_place(mode):
    expected = product(risk_of(nn.MSELoss()), mode)
    ours = product(risk_of(lambda z, y: z.sub_(y).square_().mean()), mode)
    assert norm(ours - expected) <= 1e-14 * norm(expected)


# --------------------------------------------------------------------------------------------------
# No curvature

FLAT = {
    "l1": F.l1_loss,
    "hinge": lambda z, y: F.relu(1 - z * y).mean(),
    "huber far away": lambda z, y: F.huber_loss(z, y + 1e3),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FLAT)
def test_a_loss_without_curvature_here_is_told(name, mode):
    with pytest.warns(UserWarning, match="flat or piecewise linear at these outputs"):
        assert not product(risk_of(FLAT[name]), mode).any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "loss", [F.huber_loss, F.smooth_l1_loss, lambda z, y: F.relu(1 - z * y).square().mean()]
)
def test_a_loss_with_kinks_and_curvature_is_not_complained_of(loss, mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert product(risk_of(loss), mode).any()


LABELS = torch.tensor([0, 2, 1, 1, 0, 2])
LINEAR = {
    "mean": lambda z, y: z.mean(),
    "maximum": lambda z, y: torch.max(z, y).mean(),
    "log-probabilities": lambda z, y: F.nll_loss(z, LABELS),
    "log-probabilities of places": lambda z, y: F.nll_loss(z.T[None], LABELS[None]),
    "multi-margin": lambda z, y: F.multi_margin_loss(z, LABELS),
}


@pytest.mark.parametrize("loss", LINEAR.values(), ids=LINEAR)
def test_a_loss_that_is_linear_for_sure_is_refused(loss):
    with pytest.raises(FunctionError, match="linear in them"):
        product(risk_of(loss))


def test_a_function_of_a_linear_loss_has_its_curvature():
    """That of exp(l) is exp(l) l' l'^T, with l the mean of -z[n, y[n]]."""
    logits = draw(6, 3, seed=1)
    model = nn.Linear(4, 3, bias=False).double()
    risk = Risk(
        model, lambda z, y: F.nll_loss(z, LABELS).exp(), (draw(6, 4), logits), weight=lambda *_: 1.0
    )
    slope = (-F.one_hot(LABELS).double() / 6).T @ draw(6, 4)
    expected = float(risk(risk.params)) * torch.outer(slope.view(-1), slope.view(-1))
    assert norm(ggn_operator(risk).to_dense() - expected) <= 1e-14 * norm(expected)
