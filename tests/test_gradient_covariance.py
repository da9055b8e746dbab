# SPDX-License-Identifier: Apache-2.0
"""The second moment and the covariance of gradients against those of single examples."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hesse import Risk, Space, fisher_operator, gradient_covariance_operator
from hesse.ad.likelihoods.seen import counts_of
from hesse.errors import FunctionError
from hesse.testing.likelihoods import (
    LIKELIHOODS,
)

DOUBLE = torch.float64


def close(operator, exact):
    """Within 1e-8 of the dense matrix."""
    ours = operator.to_dense()
    assert (ours - exact).norm() <= 1e-8 * exact.norm()


@pytest.mark.some_cases(9)
@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("centered", [False, True])
def test_covariance_is_that_of_example_gradients(build, name, centered):
    risk = build(name, weight_decay=0.2)
    space, gradients, weights = Space.of(risk.params), [], []
    for _, batch in risk.batches():
        inputs, targets = batch.inputs, batch.targets
        number = len(inputs["left"] if isinstance(inputs, dict) else inputs)
        for i in range(number):
            if isinstance(inputs, dict):
                one = {key: part[i : i + 1] for key, part in inputs.items()}
                single = (one, one)
            else:
                single = inputs[i : i + 1], targets[i : i + 1]
            x = space.flatten(risk.params).clone().requires_grad_()
            single_risk = risk.unchecked_on([single[0] if isinstance(inputs, dict) else single])
            parts = next(iter(single_risk.batches()))[1]
            loss = risk.loss_of_batch(space.unflatten(x), parts)
            gradients.append(torch.autograd.grad(loss, x)[0])
            weights.append(parts.weight if risk.averages else 1.0)
    g, w = torch.stack(gradients), torch.tensor(weights, dtype=DOUBLE)
    w = w / w.sum()
    exact = g.T @ (w[:, None] * g)
    if centered:
        exact -= (w @ g).outer(w @ g)
    M = gradient_covariance_operator(risk, risk.params, centered=centered)
    close(M, exact)
    close(M, exact)
    assert torch.linalg.eigvalsh(M.to_dense()).min() >= -1e-10 * exact.norm()


def test_covariance_and_empirical_fisher_agree_for_unweighted_cross_entropy(build):
    risk = build("mlp")
    close(
        fisher_operator(risk, risk.params, "empirical"),
        gradient_covariance_operator(risk, risk.params).to_dense(),
    )


X, Y = torch.randn(7, 3, dtype=DOUBLE), torch.randn(7, 2, dtype=DOUBLE)
WITHOUT_DENSITY = {
    "huber": lambda reduction: nn.HuberLoss(reduction, delta=0.7),
    "smooth l1": lambda reduction: nn.SmoothL1Loss(reduction=reduction, beta=0.5),
    "l1": lambda reduction: nn.L1Loss(reduction=reduction),
    "soft margin": lambda reduction: (
        lambda z, y: F.soft_margin_loss(z, y.sign(), reduction=reduction)
    ),
    "targets first": lambda reduction: lambda z, y: F.huber_loss(y, z, reduction=reduction),
    "two terms": lambda reduction: (
        lambda z, y: (
            F.huber_loss(z, y, reduction=reduction) + 0.3 * F.mse_loss(z, y, reduction=reduction)
        )
    ),
}


@pytest.mark.some_cases(7)
@pytest.mark.parametrize("name", WITHOUT_DENSITY)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_covariance_of_losses_without_a_density(name, reduction):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    loss = WITHOUT_DENSITY[name](reduction)
    whole = Risk(model, loss, (X, Y), weight_decay=0.1, reduction=reduction)
    gradients = []
    for x, y in zip(X[:, None], Y[:, None], strict=True):
        parts = torch.autograd.grad(loss(model(x), y), list(model.parameters()))
        gradients.append(torch.cat([part.reshape(-1) for part in parts]))
    g = torch.stack(gradients)
    close(gradient_covariance_operator(whole), g.T @ g / 7)
    close(gradient_covariance_operator(whole, centered=True), torch.cov(g.T, correction=0))
    batches = Risk(model, loss, [(X[:4], Y[:4]), (X[4:], Y[4:])], reduction=reduction)
    close(gradient_covariance_operator(batches, mode="traced-split"), g.T @ g / 7)
    a = torch.arange(7.0).double()
    close(gradient_covariance_operator(whole.weighted(a)), g.T @ (a[:, None] * g) / a.sum())


def test_losses_without_a_density_have_no_fisher_matrix():
    risk = Risk(nn.Linear(3, 2).double(), nn.HuberLoss(), (X, Y))
    for kind in ("exact", "sampled", "empirical"):
        with pytest.raises(FunctionError, match="a loss that is a likelihood"):
            fisher_operator(risk, kind=kind)


def test_a_weighted_mean_of_absolute_errors_divides_by_the_weights():
    weight = torch.rand(7, 2, dtype=DOUBLE) + 0.5
    arguments = {"input": X[:, :2], "target": Y, "weight": weight, "reduction": "mean"}
    rows = F.l1_loss(X[:, :2], Y, weight=weight, reduction="none")
    divisor = counts_of(F.l1_loss, arguments, rows).sum()
    torch.testing.assert_close(rows.sum() / divisor, F.l1_loss(X[:, :2], Y, weight=weight))
