# SPDX-License-Identifier: Apache-2.0
"""Hypergradients of a problem of learning, against finite differences and closed forms."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev
from torch.nn import functional as F

import hesse
from hesse.apps import argmin, hypergradient
from hesse.errors import (
    Status,
)
from tests.implicit_problems import DOUBLE, L0, N, close, quadratic, random, seeded

# -- A problem of learning -------------------------------------------------------------------------


def task(seed=0, num=60):
    """Softmax regression with a log weight decay for each parameter; ragged batches."""
    g = seeded(seed)
    centres = 1.5 * torch.randn(3, 5, generator=g, dtype=DOUBLE)
    y = torch.randint(0, 3, (2 * num,), generator=g)
    X = centres[y] + torch.randn(2 * num, 5, generator=g, dtype=DOUBLE)
    return (X[:num], y[:num]), (X[num:], y[num:])


MODEL = nn.Linear(5, 3).double()
TRAIN, VALID = task()
BATCHES = [(TRAIN[0][:25], TRAIN[1][:25]), (TRAIN[0][25:], TRAIN[1][25:])]
RISK = hesse.Risk(MODEL, nn.CrossEntropyLoss(), BATCHES)
START = {name: torch.zeros_like(p) for name, p in RISK.params.items()}


def penalised(params, logs):
    decay = sum((logs[name].exp() * p**2).sum() for name, p in params.items()) / 2
    return RISK(params) + decay


def validation(params, _=None):
    return F.cross_entropy(functional_call(MODEL, params, (VALID[0],)), VALID[1])


LOGS = {name: torch.full_like(p, -4.0) for name, p in START.items()}


def minimised(logs, atol=1e-12):
    return hesse.minimize(lambda p: penalised(p, logs), START, "newton-cg", rtol=0.0, atol=atol).x


def test_a_weight_decay_for_each_parameter_equals_finite_differences():
    exact = hypergradient(validation, penalised, minimised(LOGS), LOGS, rtol=1e-10)
    h, i = 1e-4, int(exact.gradient["weight"].abs().argmax())

    def at(shift):
        logs = {name: l.clone() for name, l in LOGS.items()}
        logs["weight"].view(-1)[i] += shift
        return float(validation(minimised(logs)))

    difference = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    got = float(exact.gradient["weight"].view(-1)[i])
    assert abs(got - difference) <= 1e-7 * abs(difference)
    assert exact.error < 1e-8
    x = argmin(penalised, START, rtol=1e-10)
    logs = {name: l.clone().requires_grad_() for name, l in LOGS.items()}
    validation(x(logs)).backward()
    close(logs["weight"].grad, exact.gradient["weight"], 1e-7)
    close(logs["bias"].grad, exact.gradient["bias"], 1e-7)


@pytest.mark.some_cases(5)
@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("atol", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("rtol", [1e-1, 1e-2, 1e-3])
def test_the_estimated_error_is_of_the_size_of_the_error(atol, rtol):
    exact = hypergradient(validation, penalised, minimised(LOGS), LOGS, rtol=1e-11)
    x = minimised(LOGS, atol)
    rough = hypergradient(validation, penalised, x, LOGS, rtol=rtol)
    space = hesse.Space.of(LOGS)
    error = space.norm(space.flatten(rough.gradient) - space.flatten(exact.gradient))
    assert error / 2 < rough.error < 2 * error
    distance = space.norm(space.flatten(x) - space.flatten(minimised(LOGS)))
    assert distance / 2 < rough.x_error < 2 * distance
    assert rough.residual <= atol


def test_the_function_estimates_its_error_if_asked():
    right = argmin(penalised, START, rtol=1e-11)
    rough = argmin(
        *(penalised, START),
        solve=lambda x0, logs: minimised(logs, 1e-3),
        rtol=1e-2,
        estimate_error=True,
    )
    space, grads = hesse.Space.of(LOGS), []
    direction = {name: random(*p.shape, seed=7) for name, p in START.items()}
    for x in (right, rough):
        logs = {name: l.clone().requires_grad_() for name, l in LOGS.items()}
        found = x(logs)
        sum((found[name] * direction[name]).sum() for name in found).backward()
        grads.append(space.flatten({name: l.grad for name, l in logs.items()}))
    error = space.norm(grads[1] - grads[0])
    assert error / 2 < rough.report.gradient_error < 2 * error
    assert right.report.gradient_error is None
    assert "gradient_error" in repr(rough.report)
    assert len(repr(rough.report).splitlines()) < 24


@pytest.mark.slow
def test_warm_starts_save_products():
    products = []
    for warm in (False, True):
        x = argmin(penalised, START, rtol=1e-4, warm_start=warm)
        logs = {name: l.clone().requires_grad_() for name, l in LOGS.items()}
        for _ in range(6):
            grads = torch.autograd.grad(validation(x(logs)), logs.values())
            logs = {
                name: (l - 0.5 * g).detach().requires_grad_()
                for (name, l), g in zip(logs.items(), grads, strict=True)
            }
        products.append(x.report.products)
    assert products[1] < 0.9 * products[0]


def test_hypergradients_start_from_the_last_adjoint():
    first = hypergradient(validation, penalised, minimised(LOGS), LOGS, estimate_error=False)
    again = hypergradient(
        *(validation, penalised, minimised(LOGS), LOGS),
        adjoint=first.adjoint,
        estimate_error=False,
    )
    assert again.products <= 2 < first.products
    assert again.error is None


def test_the_explicit_part_of_the_outer_gradient_counts():
    l = torch.tensor([1.0, -2.0], dtype=DOUBLE)
    inner = lambda x, l: ((x - l**2) ** 2).sum()  # noqa: E731
    got = hypergradient(lambda x, l: (x * l).sum() + l[0], inner, l**2, l)
    close(got.gradient, 3 * l**2 + torch.tensor([1.0, 0.0], dtype=DOUBLE))
    close(got.value, (l**3).sum() + 1.0)
    only_explicit = hypergradient(lambda x, l: (l**2).sum(), inner, l**2, l)
    close(only_explicit.gradient, 2 * l)


def test_the_weight_of_an_example_has_minus_its_influence():
    """Data hyper-cleaning: dL/dw_i = -s'g_i."""
    X, y = TRAIN

    def weighted(params, w):
        losses = F.cross_entropy(functional_call(MODEL, params, (X,)), y, reduction="none")
        return (w * losses).mean() + 0.01 * sum((p**2).sum() for p in params.values())

    w = torch.ones(len(y), dtype=DOUBLE)
    x = hesse.minimize(lambda p: weighted(p, w), START, rtol=0.0, atol=1e-10).x
    result = hypergradient(validation, weighted, x, w, rtol=1e-11)
    space = hesse.Space.of(x)
    H = hesse.hessian_operator(lambda p: weighted(p, w), x).to_dense()
    g = space.flatten(grad(validation)(x))
    s = space.unflatten(torch.linalg.solve(H, g))
    slopes = jacrev(
        lambda p: F.cross_entropy(functional_call(MODEL, p, (X,)), y, reduction="none") / len(y)
    )(x)
    right = -sum((slopes[name].flatten(1) @ s[name].flatten()) for name in x)
    close(result.gradient, right)


@pytest.mark.slow
def test_corrupted_examples_lose_their_weight():
    X, y = TRAIN
    wrong = torch.arange(0, len(y), 3)
    dirty = y.clone()
    dirty[wrong] = (dirty[wrong] + 1) % 3

    def weighted(params, w):
        losses = F.cross_entropy(functional_call(MODEL, params, (X,)), dirty, reduction="none")
        return (w.sigmoid() * losses).mean() + 0.01 * sum((p**2).sum() for p in params.values())

    x, w = argmin(weighted, START), torch.zeros(len(y), dtype=DOUBLE, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=0.2)
    for _ in range(30):
        optimizer.zero_grad()
        validation(x(w)).backward()
        optimizer.step()
    is_wrong = torch.zeros(len(y)).bool()
    is_wrong[wrong] = True
    weights = w.detach().sigmoid()
    assert weights[is_wrong].mean() < 0.3 < 0.5 < weights[~is_wrong].mean()


@pytest.mark.slow
def test_the_gradient_of_imaml_equals_finite_differences():
    net = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    theta = {name: p.detach().clone() for name, p in net.named_parameters()}
    points = 5 * random(2, 8, 1)
    targets = torch.sin(points + 0.3)

    def mse(params, i):
        return ((functional_call(net, params, (points[i],)) - targets[i]) ** 2).mean()

    def inner(params, theta):
        away = sum(((p - theta[name]) ** 2).sum() for name, p in params.items())
        return mse(params, 0) + 0.25 * away

    def tight(x0, theta):
        return hesse.minimize(lambda p: inner(p, theta), x0, rtol=0.0, atol=1e-11).x

    adapt = argmin(inner, theta, solve=tight, rtol=1e-10)
    meta = {name: p.clone().requires_grad_() for name, p in theta.items()}
    mse(adapt(meta), 1).backward()
    # Differences of 1e-4 are 2e-7 off: what rounding leaves of the minima, divided by h.
    h, i = 1e-3, int(meta["0.weight"].grad.abs().argmax())

    def at(shift):
        moved = {name: p.clone() for name, p in theta.items()}
        moved["0.weight"].view(-1)[i] += shift
        return float(mse(tight(theta, moved), 1))

    difference = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    got = float(meta["0.weight"].grad.view(-1)[i])
    assert abs(got - difference) <= 1e-7 * abs(difference)


def test_a_truncated_adjoint_is_that_of_few_steps_of_conjugate_gradients():
    x = argmin(quadratic, torch.zeros(N, dtype=DOUBLE), max_iterations=2, method="cg")
    l = L0.clone().requires_grad_()
    x(l).sum().backward()
    assert x.report.adjoint_status is Status.MAX_ITERATIONS
    assert x.report.adjoint_products == 3
