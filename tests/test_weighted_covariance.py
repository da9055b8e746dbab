# SPDX-License-Identifier: Apache-2.0
"""The covariance of gradients of weighted examples, against sums over examples."""

import pytest
import torch
from torch import nn

from hesse import (
    Risk,
    gradient_covariance_operator,
)
from tests.weighted_risks import (
    DOUBLE,
    WEIGHTS,
    N,
    V,
    W,
    contributions,
    masked,
    mlp,
    risk,
    time_first,
    x,
    y,
)


def covariance(r, weights, centered):
    """By the gradients of the single losses, from what each adds to the plain risk."""
    part = contributions(r)
    divided = counted(r)
    gradients = []
    for n in range(N):
        leaves = {key: leaf.clone().requires_grad_() for key, leaf in r.params.items()}
        value = part(leaves, n) / divided[n].clamp(min=1e-300)
        parts = torch.autograd.grad(value, list(leaves.values()))
        gradients.append(torch.cat([part.reshape(-1) for part in parts]))
    w = weights * divided / (weights * divided).sum()
    G = torch.stack(gradients)
    M = G.T @ (w[:, None] * G)
    return M - torch.outer(w @ G, w @ G) if centered else M


def counted(r):
    """What each example weighs in the mean of the risk, which adds up to one."""
    ((_, batch),) = r.batches()
    t = batch.targets
    if isinstance(r.loss, nn.CrossEntropyLoss) and r.loss.weight is not None:
        counts = r.loss.weight[t] * (t != r.loss.ignore_index)
    elif r.loss is time_first:
        counts = (t != -100).sum(1).double()
    elif r.loss is masked:
        counts = (t > 0).double()
    else:
        counts = torch.ones(N, dtype=DOUBLE)
    return torch.ones(N).double() if r.loss is not masked and is_sum(r) else counts / counts.sum()


def is_sum(r):
    return getattr(r.loss, "reduction", "mean") == "sum"


LIKELIHOODS = ["mean", "class weights", "sum", "bernoulli", "tokens", "masked"]


@pytest.mark.some_cases(8)
@pytest.mark.fast_cases(4)
@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("mode", ["retained-graph", "traced-split"])
def test_the_covariance_of_gradients_of_weighted_examples(name, centered, mode):
    r = risk(name, weight_decay=0.1)
    exact = covariance(r, WEIGHTS, centered)
    for scale in (1.0, 3.0):  # the mean divides by the sum of the weights
        weighted = r.weighted(scale * WEIGHTS)
        M = gradient_covariance_operator(weighted, r.params, centered=centered, mode=mode)
        torch.testing.assert_close(M.to_dense(), exact, rtol=1e-9, atol=1e-12)
    weight = {"tokens": lambda inputs, t: float((t != -100).sum()),
              "masked": lambda inputs, t: float((t > 0).sum())}.get(name)  # fmt: skip
    ragged = risk(name, (3, 3, 1), weight=weight).weighted(WEIGHTS)
    M = gradient_covariance_operator(ragged, r.params, centered=centered, mode=mode)
    torch.testing.assert_close(M.to_dense(), exact, rtol=1e-9, atol=1e-12)
    ones = r.weighted(torch.full((N,), 2.0, dtype=DOUBLE))
    torch.testing.assert_close(
        gradient_covariance_operator(ones, r.params, centered=centered, mode=mode).to_dense(),
        gradient_covariance_operator(r, r.params, centered=centered, mode=mode).to_dense(),
    )


@pytest.mark.slow
def test_a_weighted_covariance_counts_an_example_as_often_as_it_weighs():
    """The covariance of a sample with repetitions, at two points, and of a subset."""
    r, times = risk("mean", (4, 3)), torch.tensor([1, 0, 2, 0, 1, 0, 3])
    repeated = r.subset(torch.repeat_interleave(torch.arange(N), times))
    weighted = r.weighted(times.double())
    moved = {key: leaf + 0.1 for key, leaf in r.params.items()}
    M = gradient_covariance_operator(weighted, r.params)
    for at in (r.params, moved):
        expected = gradient_covariance_operator(repeated, at)
        torch.testing.assert_close(M.at(at).to_dense(), expected.to_dense())
        torch.testing.assert_close(M.at(at).gradient, expected.gradient)
        torch.testing.assert_close(M.at(at).value, expected.value)
    kept = torch.tensor([0, 2, 4, 6])
    for each in (weighted.subset(kept), r.subset(kept).weighted(times[kept].double())):
        torch.testing.assert_close(
            gradient_covariance_operator(each, r.params, centered=True).to_dense(),
            gradient_covariance_operator(repeated, r.params, centered=True).to_dense(),
        )


def test_a_weighted_covariance_sees_what_is_written_into_the_targets():
    inputs, targets = x(), y().clone()
    model = mlp().double()
    r = Risk(model, nn.CrossEntropyLoss(W), [(inputs[:4], targets[:4]), (inputs[4:], targets[4:])])
    M = gradient_covariance_operator(r.weighted(WEIGHTS), r.params)
    M.to_dense()
    targets.copy_(targets.flip(0))
    fresh = Risk(model, nn.CrossEntropyLoss(W), (inputs, targets.clone()))
    expected = gradient_covariance_operator(fresh.weighted(WEIGHTS), r.params)
    torch.testing.assert_close(M.at(r.params).to_dense(), expected.to_dense())


def test_a_weighted_covariance_within_a_budget():
    torch.manual_seed(0)
    inputs, targets = torch.randn(300, 20).double(), torch.randint(0, V, (300,))
    model = nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, V)).double()
    r = Risk(model, nn.CrossEntropyLoss(), (inputs, targets)).weighted(torch.rand(300).double())
    exact, small = (
        gradient_covariance_operator(r, r.params, memory_budget=budget) for budget in (None, "2MB")
    )
    v = exact.domain.gaussian()
    torch.testing.assert_close(small @ v, exact @ v)
