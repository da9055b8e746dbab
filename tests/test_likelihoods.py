# SPDX-License-Identifier: Apache-2.0
"""Losses as likelihoods: against autograd, closed forms, and means over many draws."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hesse.ad.likelihoods.entrywise import normal, poisson
from hesse.ad.likelihoods.seen import LikelihoodCalls, seen_loss
from hesse.errors import FunctionError

DOUBLE = torch.float64
CLASSES = 4


def z(*shape, positive=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=DOUBLE)
    return values.exp() if positive else values


def classes(*shape, ignored=False):
    y = torch.randint(0, CLASSES, shape, generator=torch.Generator().manual_seed(1))
    return y.masked_fill(y == 2, -100) if ignored else y


def bits(*shape):
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(2)).double()


WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.25], dtype=DOUBLE)
SOFT = z(5, CLASSES, seed=3).softmax(1)

# name -> (loss, parameters of the distribution, whether they are natural)
LOSSES = {
    "cross entropy": (lambda a: F.cross_entropy(a, classes(5)), [z(5, 4)], True),
    "unbatched": (lambda a: F.cross_entropy(a, torch.tensor(2)), [z(4)], True),
    "class weights": (lambda a: F.cross_entropy(a, classes(5), WEIGHT), [z(5, 4)], True),
    "smoothing": (
        lambda a: F.cross_entropy(a, classes(5), WEIGHT, label_smoothing=0.2),
        [z(5, 4)],
        True,
    ),
    "ignored": (
        lambda a: F.cross_entropy(a, classes(5, 3, ignored=True), WEIGHT, label_smoothing=0.1),
        [z(5, 4, 3)],
        True,
    ),
    "sum": (
        lambda a: F.cross_entropy(a, classes(5, ignored=True), reduction="sum"),
        [z(5, 4)],
        True,
    ),
    "rows": (
        lambda a: (
            F.cross_entropy(a, classes(5, ignored=True), WEIGHT, reduction="none")
            @ torch.arange(5.0).double()
        ),
        [z(5, 4)],
        True,
    ),
    "soft": (
        lambda a: F.cross_entropy(a, SOFT, WEIGHT, label_smoothing=0.1),
        [z(5, 4)],
        True,
    ),
    "squared error": (lambda a: F.mse_loss(a, z(5, 3, seed=4)), [z(5, 3)], True),
    "squared error, sum": (
        lambda a: F.mse_loss(a, z(5, 3, seed=4), reduction="sum"),
        [z(5, 3)],
        True,
    ),
    "squared error, weights": (
        lambda a: F.mse_loss(a, z(5, 3, seed=4), weight=z(5, 3, positive=True, seed=5)),
        [z(5, 3)],
        True,
    ),
    "squared error, swapped": (lambda a: F.mse_loss(z(5, 3, seed=4), a), [z(5, 3)], True),
    "bernoulli": (
        lambda a: F.binary_cross_entropy_with_logits(a, bits(5, 4)),
        [z(5, 4)],
        True,
    ),
    "bernoulli, weights": (
        lambda a: F.binary_cross_entropy_with_logits(
            a, 0.3 + 0.5 * bits(5, 4), WEIGHT, pos_weight=3 * WEIGHT
        ),
        [z(5, 4)],
        True,
    ),
    "probabilities": (
        lambda a: F.binary_cross_entropy(a, bits(5, 4), WEIGHT),
        [z(5, 4).sigmoid()],
        False,
    ),
    "poisson": (lambda a: F.poisson_nll_loss(a, 3 * bits(5, 4)), [z(5, 4)], True),
    "rates": (
        lambda a: F.poisson_nll_loss(a, 3 * bits(5, 4), log_input=False, reduction="sum"),
        [z(5, 4, positive=True)],
        False,
    ),
    "gaussian": (
        lambda a, v: F.gaussian_nll_loss(a, z(5, 3, seed=4), v),
        [z(5, 3), z(5, 3, positive=True, seed=6)],
        False,
    ),
    "one variance": (
        lambda a, v: F.gaussian_nll_loss(a, z(5, 3, seed=4), v, reduction="sum", full=True),
        [z(5, 3), z(5, positive=True, seed=6)],
        False,
    ),
    "log-probabilities": (
        lambda a: F.nll_loss(a, classes(5, ignored=True), WEIGHT),
        [z(5, 4).log_softmax(1)],
        False,
    ),
}
cases = pytest.mark.parametrize("case", LOSSES.values(), ids=LOSSES)


def look(loss, parameters):
    """What is seen of a loss that is doubled and shifted."""
    leaves = [part.clone().requires_grad_() for part in parameters]
    with LikelihoodCalls() as noted:
        value = 2.0 * loss(*(leaf * 1.0 for leaf in leaves)) + 3.0
    return seen_loss(value, noted.calls, leaves), leaves, value


def flat(parts):
    return torch.cat([part.reshape(-1) for part in parts])


def like(vector, parts):
    sizes = [part.numel() for part in parts]
    return [a.view_as(b) for a, b in zip(vector.split(sizes), parts, strict=True)]


def matrix(apply, parts):
    n = sum(part.numel() for part in parts)
    columns = [flat(apply(like(e, parts))) for e in torch.eye(n, dtype=DOUBLE)]
    return torch.stack(columns, 1)


@cases
def test_slopes_are_those_of_the_loss(case):
    loss, parameters, _ = case
    seen, leaves, value = look(loss, parameters)
    torch.testing.assert_close(flat(seen.slope), flat(torch.autograd.grad(value, leaves)))
    torch.testing.assert_close(seen.value, value.detach())


@cases
def test_fisher_is_the_hessian_where_parameters_are_natural(case):
    loss, parameters, natural = case
    (likelihood,) = look(loss, parameters)[0].likelihoods
    assert likelihood.is_natural == natural
    fisher = matrix(likelihood.product, parameters)
    sizes = [part.numel() for part in parameters]

    def function(vector):
        return 2.0 * loss(*like(vector, parameters))

    hessian = torch.autograd.functional.hessian(function, flat(parameters))
    assert hessian.shape == (sum(sizes),) * 2
    if natural:
        torch.testing.assert_close(fisher, hessian)
    else:
        assert not torch.allclose(fisher, hessian)


@cases
def test_a_root_squares_to_the_fisher_matrix(case):
    loss, parameters, _ = case
    (likelihood,) = look(loss, parameters)[0].likelihoods
    fisher = matrix(likelihood.product, parameters)
    for f in (likelihood.root, likelihood.short_root):
        root = matrix(f, parameters)
        torch.testing.assert_close(root @ root.T, fisher)
    if likelihood.is_singular:  # the last column of every row is not needed
        last = torch.zeros_like(likelihood.z)
        last.narrow(likelihood.row_dim, -1, 1).fill_(1.0)
        assert not flat(likelihood.short_root([last])).any()


@cases
def test_draws_have_the_fisher_matrix_as_second_moment(case):
    loss, parameters, _ = case
    (likelihood,) = look(loss, parameters)[0].likelihoods
    generator = torch.Generator().manual_seed(5)
    uniform = torch.rand(4000, *likelihood.noise_shape, generator=generator, dtype=DOUBLE)
    r = likelihood.slope(likelihood.draw(uniform))
    for seed in range(3):
        u = [z(*part.shape, seed=seed + 7) for part in parameters]
        rows = likelihood.row_multiples(r, likelihood.row_inner(r, u))
        for ours, exact in zip(rows, likelihood.product(u), strict=True):
            standard_error = ours.std(0) / 4000**0.5
            assert ((ours.mean(0) - exact).abs() <= 5 * standard_error + 1e-12).all()
            assert standard_error.norm() < 0.2 * exact.norm()


def test_log_probabilities_have_the_fisher_matrix_of_cross_entropy():
    leaf = z(5, 4).requires_grad_()
    with LikelihoodCalls() as noted:
        logs = leaf.log_softmax(1)
        value = F.nll_loss(logs, classes(5, ignored=True), WEIGHT)
    (likelihood,) = seen_loss(value, noted.calls, [leaf]).likelihoods
    J = torch.func.jacrev(lambda a: a.log_softmax(1).flatten())(leaf.detach()).view(20, 20)
    ours = J.T @ matrix(likelihood.product, [leaf.detach()]) @ J

    def cross_entropy(vector):
        return F.cross_entropy(vector.view(5, 4), classes(5, ignored=True), WEIGHT)

    hessian = torch.autograd.functional.hessian(cross_entropy, leaf.detach().flatten())
    torch.testing.assert_close(ours, hessian)


@pytest.mark.parametrize("rate", [0.0, 1e-3, 0.7, 5.0, 300.0, 1e6])
def test_poisson_numbers(rate):
    uniform = torch.rand(20000, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    numbers = poisson(uniform, torch.full((20000,), rate, dtype=DOUBLE))
    sem = math.sqrt(max(rate, 1e-9) / 20000)
    assert abs(float(numbers.mean()) - rate) <= 5 * sem
    assert abs(float(numbers.var()) - rate) <= 5 * sem * math.sqrt(2 * rate + 1)
    assert torch.equal(numbers, numbers.round().abs())
    if 0.5 < rate < 10:  # P(X <= k) >= u > P(X <= k - 1)
        distribution = torch.special.gammaincc(
            torch.stack([numbers + 1, numbers]).clamp(min=1e-30), torch.tensor(rate).double()
        )
        assert (distribution[0] >= uniform).all()
        assert ((distribution[1] < uniform) | (numbers == 0)).all()


def test_normal_numbers():
    uniform = torch.linspace(0, 1, 11, dtype=DOUBLE)
    numbers = normal(uniform)
    assert torch.isfinite(numbers).all()
    torch.testing.assert_close(torch.special.ndtr(numbers), uniform)


def test_calls_are_seen_through_closures_reshapes_and_sums():
    logits, y = z(2, 3, 4).requires_grad_(), classes(2, 3)
    module = nn.CrossEntropyLoss(ignore_index=1)

    def loss(outputs, targets):
        flat = module(outputs.reshape(-1, 4), targets.reshape(-1))
        moved = 0.25 * module(outputs.transpose(1, 2), targets)
        moved *= 2.0
        return 0.5 * flat + moved

    with LikelihoodCalls() as noted:
        value = loss(logits * 1.0, y)
    seen = seen_loss(value, noted.calls, [logits])
    assert len(seen.likelihoods) == 2
    (slope,) = torch.autograd.grad(value, logits)
    one, two = seen.slope
    torch.testing.assert_close(one.view(2, 3, 4) + two.transpose(1, 2), slope)


def test_a_distribution_whose_parameters_depend_on_one_another():
    x = z(5).requires_grad_()
    with LikelihoodCalls() as noted:
        mean = x.sin()
        value = F.gaussian_nll_loss(mean, z(5, seed=1), mean.exp())
    seen = seen_loss(value, noted.calls, [x])
    of_mean, of_variance = seen.slope
    (slope,) = torch.autograd.grad(value, x)
    chain = (of_mean + of_variance * mean.exp()).detach() * x.cos()
    torch.testing.assert_close(chain, slope)


def refused(loss, match, x=None):
    x = z(5, 4).requires_grad_() if x is None else x
    with LikelihoodCalls() as noted:
        value = loss(x)
    with pytest.raises(FunctionError, match=match):
        seen_loss(value, noted.calls, [x], "MyLoss").check()


def test_what_is_no_likelihood_is_refused():
    y = classes(5)
    refused(lambda a: F.l1_loss(a, a.detach() + 1), "MyLoss, in which none of them is called")
    refused(
        lambda a: ((1 - (-F.cross_entropy(a, y, reduction="none")).exp()) ** 2).mean(),
        "none of them|not linear",
    )
    refused(
        lambda a: F.cross_entropy(a, y) ** 2,
        "MyLoss, which is not linear in the value of its cross_entropy",
    )
    refused(
        lambda a: F.cross_entropy(a * 1.0, y) + 0.1 * a.square().mean(),
        "another way than through its cross_entropy",
    )
    refused(lambda a: -F.cross_entropy(a, y), "negative weights")
    refused(lambda a: F.nll_loss(a.log_softmax(1) + 0.1, y), "do not add up to one")
    refused(lambda a: F.mse_loss(a, 2 * a), "target depends on the parameters")
    with pytest.warns(UserWarning, match="target size"):
        refused(lambda a: F.mse_loss(a, z(5, 1)), "one shape")


def test_inputs_that_are_written_to_later_are_refused():
    def loss(a):
        logits = a * 1.0
        value = F.mse_loss(logits.clone(), z(5, 4, seed=1)) + F.cross_entropy(logits, classes(5))
        logits += 1.0
        return value

    refused(loss, "writes into what its cross_entropy was given")
