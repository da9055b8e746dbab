# SPDX-License-Identifier: Apache-2.0
"""Robust losses and bounds of `least_squares`, against SciPy and closed forms."""

from __future__ import annotations

import math

import pytest
import torch

import hesse
from hesse.optimize.squares.robust_loss import LOSSES, RobustLoss
from hesse.vectors import Space
from tests.curve_fits import DOUBLE, MGH, TIGHT, gaussian, scipy_fit, vector

# --------------------------------------------------------------------------------------------------
# Losses


def exponential(outliers=True):
    """Residuals of an exponential through 20 points, three of which are far off."""
    t = torch.linspace(0, 1, 20, dtype=DOUBLE)
    y = 1.2 * torch.exp(t) + 0.05 * gaussian(20)
    if outliers:
        y[[3, 9, 16]] += vector(5.0, -4.0, 7.0)
    return lambda x: x[0] * torch.exp(x[1] * t) - y


@pytest.mark.filterwarnings("ignore:overflow")  # in SciPy's, at a trial point
@pytest.mark.parametrize("method", ["svd", "lsmr"])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_those_of_scipy(loss, method):
    r, x0 = exponential(), vector(1.0, 1.0)
    result = hesse.least_squares(r, x0, method, loss=loss, f_scale=0.2, **TIGHT)
    expected = scipy_fit(r, x0, loss=loss, f_scale=0.2, ftol=1e-15, gtol=1e-14)
    assert result.success
    assert result.cost == pytest.approx(expected.cost, rel=1e-8)
    assert result.x.tolist() == pytest.approx(expected.x, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_are_the_derivatives_of_the_cost(loss):
    robust, space = RobustLoss(loss, 0.7), Space.flat(5, DOUBLE)
    r = vector(0.1, -0.3, 0.5, 2.0, -4.0)
    h, slope = 1e-6, []
    for i in range(5):
        e = torch.zeros(5, dtype=DOUBLE)
        e[i] = h
        slope.append((robust.cost(space, r + e) - robust.cost(space, r - e)) / (2 * h))
    assert robust.slope(r).tolist() == pytest.approx(slope, rel=1e-7)
    w, s = robust.weights(r)
    assert torch.allclose(s if w is None else w * s, robust.slope(r), rtol=1e-13)


def test_a_loss_of_the_callers_is_differentiated():
    r, x0 = exponential(), vector(1.0, 1.0)
    named = hesse.least_squares(r, x0, loss="cauchy", f_scale=0.2, **TIGHT)
    given = hesse.least_squares(r, x0, loss=torch.log1p, f_scale=0.2, **TIGHT)
    assert given.cost == pytest.approx(named.cost, rel=1e-12)


def test_a_robust_fit_ignores_outliers():
    clean = hesse.least_squares(exponential(outliers=False), vector(1.0, 1.0)).x
    robust = hesse.least_squares(exponential(), vector(1.0, 1.0), loss="cauchy", f_scale=0.05).x
    plain = hesse.least_squares(exponential(), vector(1.0, 1.0)).x
    assert (robust - clean).norm() < 0.1 * (plain - clean).norm()


# --------------------------------------------------------------------------------------------------
# Bounds


BOUNDED = ["beale", "kowalik_osborne", "osborne_2", "chebyquad(n=8)", "broyden_banded(n=10)"]


@pytest.mark.some_cases(6)
@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("method", ["svd", "lsmr"])
@pytest.mark.parametrize("name", BOUNDED)
def test_bounded_fits_are_those_of_scipy(name, method):
    problem = MGH[name]
    x, shift = problem.x, 0.2 * gaussian(problem.space.n)
    lower, upper = x - shift.abs(), x + 0.5 * shift.roll(1).abs()
    result = hesse.least_squares(problem.residuals, x, method, bounds=(lower, upper), **TIGHT)
    expected = scipy_fit(problem.residuals, x, bounds=(lower.numpy(), upper.numpy()))
    assert result.success
    assert result.cost <= expected.cost * (1 + 1e-7)
    assert bool(((result.x >= lower) & (result.x <= upper)).all())
    assert bool((result.active_mask != 0).any())
    inside = torch.where(result.active_mask == 0, result.grad, 0.0)
    assert float(inside.abs().max()) <= 1e-5 * float(result.grad.abs().max())
    assert bool((result.grad * result.active_mask <= 1e-12).all())  # it leads out of the box


def test_a_bounded_linear_fit_has_its_closed_form():
    """x - b on [0, 1]^4 is the projection of b."""
    b = vector(-1.0, 0.25, 0.75, 3.0)
    result = hesse.least_squares(
        lambda x: x - b, torch.full((4,), 0.5, dtype=DOUBLE), bounds=(0, 1)
    )
    assert torch.equal(result.x, b.clamp(0, 1))
    assert result.active_mask.tolist() == [-1, 0, 0, 1]


def test_variables_at_a_bound_are_exactly_there():
    """Bent steps, whose rounding may lead off a bound, or beyond it."""
    at_bounds = 0
    for seed in range(9, 12):
        generator = torch.Generator().manual_seed(seed)
        A, y, x0 = (
            torch.randn(*shape, generator=generator, dtype=DOUBLE)
            for shape in ((60, 40), (60,), (40,))
        )
        upper = x0 + 0.1 * torch.rand(40, generator=generator, dtype=DOUBLE)

        def r(x, A=A, y=y):
            return torch.tanh(0.3 * A @ x) + 0.05 * (A @ x) ** 2 - y

        for steps in (2, 3):
            fit = hesse.least_squares(r, x0, bounds=(None, upper), max_iterations=steps)
            x = fit.x
            assert bool((x <= upper).all())
            is_there = (x - upper).abs() < 1e-12
            assert torch.equal(x[is_there], upper[is_there])
            at_bounds += int(fit.active_mask.sum())
    assert at_bounds > 60


def test_bounds_are_given_as_in_scipy_and_equal_ones_hold_a_variable():
    A, b = gaussian(9, 3), gaussian(9, seed=1)
    box = ([-9.0, 0.5, -9.0], [9.0, 0.5, 9.0])
    result = hesse.least_squares(lambda x: A @ x - b, vector(1.0, 0.5, 1.0), bounds=box)
    rest = torch.linalg.lstsq(A[:, [0, 2]], b - 0.5 * A[:, 1]).solution
    assert result.success
    assert torch.allclose(result.x, torch.stack([rest[0], vector(0.5)[0], rest[1]]), atol=1e-9)
    assert not result.covariance.to_dense()[1].any()


def test_one_sided_bounds_and_trees():
    x0 = {"a": torch.ones(2, dtype=DOUBLE), "b": torch.tensor(2.0, dtype=DOUBLE)}
    lower = {"a": vector(0.5, -math.inf), "b": torch.tensor(1.0, dtype=DOUBLE)}

    def r(x):
        return {"first": x["a"] - vector(-1.0, -2.0), "second": x["b"] - 5.0}

    result = hesse.least_squares(r, x0, bounds=(lower, None))
    assert result.x["a"].tolist() == pytest.approx([0.5, -2.0])
    assert float(result.x["b"]) == pytest.approx(5.0)
    assert result.fun["first"].tolist() == pytest.approx([1.5, 0.0])
    assert result.active_mask["a"].tolist() == [-1.0, 0.0]
