# SPDX-License-Identifier: Apache-2.0
"""Minimisation: classic problems, counts of evaluations, and the result."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from hesse.errors import ArgumentError, FunctionError, NonFiniteError, Status
from hesse.optimize import minimize
from hesse.risk.risk import Risk
from tests.smooth_functions import rosenbrock, wood

DOUBLE = torch.float64
METHODS = ["enriched", "newton-cg", "trust-cg", "trust-krylov", "cubic", "lbfgs", "newton-minres"]


def beale(x):
    return sum((c - x[0] * (1 - x[1] ** i)) ** 2 for i, c in ((1, 1.5), (2, 2.25), (3, 2.625)))


def helical_valley(x):
    angle = torch.atan2(x[1], x[0]) / (2 * math.pi)
    return 100 * ((x[2] - 10 * angle) ** 2 + (x[:2].norm() - 1) ** 2) + x[2] ** 2


def log_barrier(x):
    return (x**2 - torch.log(x)).sum()


PROBLEMS = {  # function, start, minimiser
    "rosenbrock": (rosenbrock, [-1.2, 1.0], [1.0, 1.0]),
    "rosenbrock from afar": (rosenbrock, [1.0, 8.0], [1.0, 1.0]),
    "beale": (beale, [1.0, 1.0], [3.0, 0.5]),
    "wood": (wood, [-3.0, -1.0, -3.0, -1.0], [1.0] * 4),
    "helical valley": (helical_valley, [-1.0, 0.1, 0.0], [1.0, 0.0, 0.0]),
    "log barrier": (log_barrier, [0.1, 5.0, 100.0], [0.5**0.5] * 3),
    "quartic": (lambda x: ((x - 2) ** 4).sum() + (x**2).sum(), [9.0, -9.0], None),
}


@pytest.mark.some_cases(16)
@pytest.mark.fast_cases(7)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_classic_problems(name, method):
    f, start, minimiser = PROBLEMS[name]
    result = minimize(f, torch.tensor(start, dtype=DOUBLE), method, rtol=1e-10)
    assert result.success, result.message
    assert result.status is Status.CONVERGED
    gradient = torch.func.grad(f)(result.x)
    torch.testing.assert_close(result.jac, gradient)
    assert result.fun == pytest.approx(float(f(result.x)))
    assert float(gradient.norm()) <= 1e-10 * result.history[0][1]
    if minimiser is not None:
        torch.testing.assert_close(
            result.x, torch.tensor(minimiser, dtype=DOUBLE), atol=1e-5, rtol=0
        )


def test_a_quadratic_takes_one_well_solved_step():
    d = torch.tensor([1.0, 4.0, 9.0], dtype=DOUBLE)
    result = minimize(lambda x: 0.5 * (d * x * x).sum() - x.sum(), torch.zeros(3, dtype=DOUBLE))
    assert result.success
    torch.testing.assert_close(result.x, 1 / d, atol=1e-7, rtol=0)


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("method", METHODS)
def test_the_value_never_rises(method):
    result = minimize(wood, torch.tensor([-3.0, -1.0, -3.0, -1.0], dtype=DOUBLE), method)
    values = [value for value, _ in result.history]
    assert all(b <= a + 1e-12 * abs(a) for a, b in pairwise(values))
    assert len(result.history) == result.nit + 1


def test_evaluations_are_counted():
    calls = []

    def f(x):
        calls.append(1)
        return rosenbrock(x)

    result = minimize(f, torch.tensor([-1.2, 1.0], dtype=DOUBLE), "newton-cg")
    # The gradient and its products reuse the graph of the value, or a program that the value
    # validates; tracing and checking programs takes a few calls more.
    assert result.nfev <= len(calls) <= result.nfev + 10
    assert result.njev == result.nit + 1
    assert result.nhev >= result.nit


def test_the_result_prints_on_one_screen_and_is_indexed_by_name():
    result = minimize(lambda x: ((x - 1.0) ** 2).sum(), torch.zeros(10_000, dtype=DOUBLE))
    assert result["x"] is result.x
    assert {"x", "success", "status", "message", "fun", "jac", "nit", "nfev"} <= {*result.keys()}
    assert len(repr(result).splitlines()) <= 24
    assert max(map(len, repr(result).splitlines())) <= 120


@pytest.mark.parametrize("method", METHODS)
def test_negative_curvature_is_followed_from_a_start_near_a_saddle(method):
    result = minimize(
        lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4, torch.tensor([1.0, 1e-3], dtype=DOUBLE), method
    )
    assert result.fun == pytest.approx(-0.25)


def test_x_and_gradient_have_the_structure_of_the_start():
    start = {"a": torch.zeros(2, dtype=DOUBLE), "b": [torch.tensor(3.0, dtype=DOUBLE)]}
    result = minimize(lambda p: ((p["a"] - 1) ** 2).sum() + (p["b"][0] + 2) ** 2, start)
    torch.testing.assert_close(result.x["a"], torch.ones(2, dtype=DOUBLE))
    assert float(result.jac["b"][0].abs()) < 1e-6
    assert not start["a"].any()


def test_single_precision_converges_or_stagnates_near_the_minimum():
    result = minimize(rosenbrock, torch.tensor([-1.2, 1.0]))
    assert result.success
    hard = minimize(rosenbrock, torch.tensor([-1.2, 1.0]), rtol=1e-30)
    assert hard.status in (Status.STAGNATED, Status.CONVERGED)
    torch.testing.assert_close(hard.x, torch.ones(2), atol=2e-3, rtol=0)


def test_a_start_at_the_minimum_takes_no_step():
    result = minimize(lambda x: (x**2).sum(), torch.zeros(3))
    assert (result.success, result.nit) == (True, 0)
    assert result.nhev <= 3  # that show the curvature


def test_limits_callbacks_and_interrupts_return_the_best_point():
    start = torch.tensor([-1.2, 1.0], dtype=DOUBLE)
    assert minimize(rosenbrock, start, max_iterations=3).status is Status.MAX_ITERATIONS
    stopped = minimize(rosenbrock, start, callback=lambda state: state.number == 5)
    assert (stopped.status, stopped.nit, stopped.success) == (Status.STOPPED, 5, False)

    def interrupt(state):
        if state.number == 4:
            raise KeyboardInterrupt

    interrupted = minimize(rosenbrock, start, callback=interrupt)
    assert (interrupted.status, interrupted.nit) == (Status.INTERRUPTED, 4)


def logistic_risk(batches=1):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(90, 5, generator=generator, dtype=DOUBLE)
    y = torch.randint(0, 3, (90,), generator=generator)
    model = nn.Linear(5, 3).double()
    size = -(-90 // batches)
    data = list(zip(x.split(size), y.split(size), strict=True))
    return Risk(model, nn.CrossEntropyLoss(), data, weight_decay=1e-2)


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.parametrize("batches", [1, 4])
def test_a_risk_agrees_with_scipy(curvature, batches):
    optimize = pytest.importorskip("scipy.optimize")
    risk = logistic_risk(batches)
    result = minimize(risk, risk.params, curvature=curvature)
    assert result.success
    sizes = [p.numel() for p in risk.params.values()]

    def value_and_gradient(x):
        parts = torch.tensor(x).split(sizes)
        leaves = {
            name: part.view(p.shape).requires_grad_()
            for part, (name, p) in zip(parts, risk.params.items(), strict=True)
        }
        value = risk(leaves)
        grads = torch.autograd.grad(value, list(leaves.values()))
        return value.item(), torch.cat([g.flatten() for g in grads]).numpy()

    start = torch.cat([p.flatten() for p in risk.params.values()]).numpy()
    theirs = optimize.minimize(value_and_gradient, start, jac=True, options={"gtol": 1e-9})
    assert result.fun == pytest.approx(theirs.fun, abs=1e-12)


def test_invalid_arguments_raise():
    start = torch.ones(2, dtype=DOUBLE)
    with pytest.raises(NonFiniteError, match="x0"):
        minimize(lambda x: torch.log(x - 2).sum(), start)
    with pytest.raises(ArgumentError, match=r"hesse.minimize\(f, x0, method='bfgs'\)"):
        minimize(rosenbrock, start, "bfgs")
    with pytest.raises(ArgumentError, match="ggn"):
        minimize(rosenbrock, start, curvature="fisher")
    with pytest.raises(FunctionError, match="Risk"):
        minimize(rosenbrock, start, curvature="ggn")


def test_steps_outside_the_domain_are_rejected():
    result = minimize(lambda x: x - torch.log(x), torch.tensor(1e-6, dtype=DOUBLE), rtol=1e-14)
    assert result.success
    assert float(result.x) == pytest.approx(1.0)
