# SPDX-License-Identifier: Apache-2.0
"""`least_squares`: functions that fail, limits, checkpoints, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import hesse
from hesse.errors import Status
from hesse.testing.smooth import more_garbow_hillstrom

DOUBLE = torch.float64
MGH = {problem.name: problem for problem in more_garbow_hillstrom()}


def vector(*entries):
    return torch.tensor(entries, dtype=DOUBLE)


def rosenbrock(x):
    return torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


START = vector(-1.2, 1.0)
METHODS = pytest.mark.parametrize("method", ["svd", "lsmr"])


# --------------------------------------------------------------------------------------------------
# Functions that fail


@METHODS
@pytest.mark.parametrize("fault", ["nan", "inf", "raises"])
def test_a_trial_point_without_residuals_is_rejected(method, fault):
    """log x - 3 from 0.5: the Gauss-Newton step of |2 log x - 6| leads far below zero first."""

    def r(x):
        if fault == "raises" and float(x.detach()[0]) <= 0:
            raise ValueError("x must be positive")
        bad = math.nan if fault == "nan" else math.inf
        outside = x <= 0
        return torch.where(outside, bad, torch.log(torch.where(outside, 1.0, x)) + 3 * x)

    result = hesse.least_squares(r, vector(9.0), method, x_scale=100.0)
    assert result.success
    x = float(result.x[0])
    assert math.log(x) + 3 * x == pytest.approx(0.0, abs=1e-8)
    if fault == "raises" and method == "lsmr":
        assert "x must be positive" in result.message


def test_a_scale_is_a_number_a_leaf_or_an_entry():
    """The first step goes to the scaled length of the radius: it tells what the scale was."""

    def steps(x0, scale):
        ends = []
        hesse.least_squares(
            lambda p: torch.cat([p["a"], p["b"] ** 3]) - 1e4, x0, x_scale=scale, max_iterations=2,
            callback=lambda state: ends.append(state.x),
        )  # fmt: skip
        return torch.cat([torch.cat([p["a"], p["b"]]) for p in ends])

    x0 = {"a": vector(1.0, 1.0), "b": vector(2.0)}
    expected = steps(x0, {"a": vector(3.0, 3.0), "b": vector(0.5)})
    assert not torch.equal(expected, steps(x0, 1.0))
    for scale in ({"a": 3, "b": 0.5}, torch.tensor([3.0, 3.0, 0.5]), np.array([3.0, 3.0, 0.5])):
        assert torch.equal(steps(x0, scale), expected)


def test_errors_that_are_no_matter_of_the_domain_are_passed_on():
    def r(x):
        if float(x.detach()[0]) != -1.2:
            raise KeyError("a fault of the function")
        return rosenbrock(x)

    with pytest.raises(KeyError, match="a fault"):
        hesse.least_squares(r, START, "lsmr")


def test_a_wrong_derivative_is_no_success():
    """Residuals whose gradient has the wrong sign: no step lowers the cost."""

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x - 1.0

        @staticmethod
        def backward(ctx, g):
            return -g

    result = hesse.least_squares(Wrong.apply, vector(3.0, 4.0))
    assert not result.success
    assert result.status is Status.STAGNATED


def test_a_function_that_cannot_be_vectorised_has_the_same_fit():
    def r(x):
        if float(x.detach()[0]) > 1e6:  # refused by vmap
            return x * 0
        return rosenbrock(x)

    result, expected = hesse.least_squares(r, START), hesse.least_squares(rosenbrock, START)
    assert result.success
    assert torch.allclose(result.x, expected.x, rtol=1e-12)


def test_a_start_at_the_solution_takes_no_step():
    result = hesse.least_squares(rosenbrock, vector(1.0, 1.0))
    assert result.success
    assert result.nit == 0
    assert result.cost == 0.0


def test_a_residual_that_x_does_not_reach():
    """Zero columns and constant rows."""
    result = hesse.least_squares(lambda x: torch.stack([x[0] - 2, 0 * x[1] + 1]), vector(0.0, 5.0))
    assert result.success
    assert result.x.tolist() == pytest.approx([2.0, 5.0])
    assert result.cost == pytest.approx(0.5)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_units_of_the_residuals_do_not_matter(scale):
    problem = MGH["kowalik_osborne"]
    plain = hesse.least_squares(problem.residuals, problem.x)
    scaled = hesse.least_squares(lambda x: scale * problem.residuals(x), problem.x)
    assert scaled.success
    assert scaled.x.tolist() == pytest.approx(plain.x.tolist(), rel=1e-6)
    assert scaled.nit == plain.nit


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_units_of_the_variables_do_not_matter(scale):
    problem, D = MGH["kowalik_osborne"], vector(1.0, scale, 1.0, scale)
    plain = hesse.least_squares(problem.residuals, problem.x)
    scaled = hesse.least_squares(lambda y: problem.residuals(D * y), problem.x / D)
    assert (D * scaled.x).tolist() == pytest.approx(plain.x.tolist(), rel=1e-6)
    assert scaled.nit == plain.nit


# --------------------------------------------------------------------------------------------------
# Limits


@METHODS
def test_limits_and_callbacks(method):
    seen = []

    def callback(iteration):
        seen.append(iteration)
        return iteration.number == 2

    result = hesse.least_squares(rosenbrock, START, method, callback=callback)
    assert result.status is Status.STOPPED
    assert [iteration.number for iteration in seen] == [0, 1, 2]
    values = [iteration.value for iteration in seen]
    assert values == sorted(values, reverse=True)
    assert values[-1] == result.cost
    short = hesse.least_squares(rosenbrock, START, method, max_iterations=1)
    assert short.status is Status.MAX_ITERATIONS
    assert short.nit == 1
    none = hesse.least_squares(rosenbrock, START, method, max_iterations=0)
    assert torch.equal(none.x, START)
    late = hesse.least_squares(rosenbrock, START, method, max_seconds=1e-9)
    assert late.status is Status.MAX_SECONDS
    hesse.least_squares(rosenbrock, START, method, progress=True)


def test_ctrl_c_returns_the_best_point():
    def callback(iteration):
        if iteration.number == 1:
            raise KeyboardInterrupt

    result = hesse.least_squares(rosenbrock, START, callback=callback)
    assert result.status is Status.INTERRUPTED
    assert result.nit == 1


@METHODS
@pytest.mark.parametrize("bounds", [None, (-2.0, vector(0.5, 2.0))])
def test_a_run_that_was_stopped_continues_to_the_same_bits(tmp_path, method, bounds):
    path, options = tmp_path / "run", {"bounds": bounds}
    whole = hesse.least_squares(rosenbrock, START, method, checkpoint=tmp_path / "whole", **options)
    stopped = hesse.least_squares(
        rosenbrock, START, method, checkpoint=path, max_iterations=2, **options
    )
    assert stopped.nit == 2
    result = hesse.least_squares(rosenbrock, START, method, checkpoint=path, **options)
    assert torch.equal(result.x, whole.x)
    assert result.history == whole.history
    assert result.nit == whole.nit
    again = hesse.least_squares(rosenbrock, START, method, checkpoint=path, **options)
    assert torch.equal(again.x, whole.x)
    assert again.message == whole.message
    with pytest.raises(hesse.HesseError, match="f_scale"):
        hesse.least_squares(rosenbrock, START, method, checkpoint=path, f_scale=2.0, **options)


# --------------------------------------------------------------------------------------------------
# Refusals

RISK = hesse.Risk(torch.nn.Linear(1, 1), torch.nn.L1Loss(), (torch.ones(3, 1), torch.zeros(3, 1)))
REFUSED = {
    "method": ({"method": "lm"}, "'auto', 'svd', 'svd-long', 'lsmr'"),
    "loss": ({"loss": "hubber"}, "Did you mean 'huber'"),
    "loss of another shape": ({"loss": torch.sum}, "the shape of z"),
    "f_scale": ({"f_scale": 0.0}, "f_scale > 0"),
    "ftol": ({"ftol": -1.0}, "ftol >= 0"),
    "x_scale": ({"x_scale": -1.0}, "x_scale > 0"),
    "x_scale of another size": ({"x_scale": [1.0, 2.0, 3.0]}, "x_scale of shape"),
    "x_scale by columns": ({"x_scale": "jac", "method": "lsmr"}, "a tree like x0"),
    "no pair": ({"bounds": 1.0}, r"a pair \(lower, upper\)"),
    "crossed bounds": ({"bounds": (vector(-5.0, 1.0), vector(1.0, 0.0))}, "not above the upper"),
    "NaN": ({"bounds": (math.nan, 1.0)}, "NaN"),
    "out of bounds": ({"bounds": (0.0, 2.0)}, "x0 within the bounds"),
    "bounds of another shape": ({"bounds": (vector(-5.0), None)}, "shape"),
    "max_iterations": ({"max_iterations": -1}, "max_iterations >= 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_are_refused(name):
    options, message = REFUSED[name]
    with pytest.raises(hesse.HesseError, match=message) as error:
        hesse.least_squares(rosenbrock, START, **options)
    assert str(error.value).startswith("hesse.least_squares(r, x0, method=")


@pytest.mark.parametrize(
    ("r", "message"),
    [
        (RISK, "MSELoss"),
        (3.0, "to be a function of x"),
        (lambda x: torch.log(x), "finite residuals"),
        (lambda x: torch.sqrt((x - START).abs()), "a finite product"),
        (lambda x: x[:0], "at least one residual"),
    ],
)
def test_functions_that_are_refused(r, message):
    with pytest.raises(hesse.HesseError, match=message):
        hesse.least_squares(r, START)


def test_a_shape_that_changes_is_said():
    lengths = iter([2, 2, 2, 3, 3, 3, 3, 3, 3])

    def r(x):
        return torch.cat([rosenbrock(x), x])[: next(lengths)]

    with pytest.raises((hesse.HesseError, RuntimeError)):
        hesse.least_squares(r, START, "lsmr")
