# SPDX-License-Identifier: Apache-2.0
"""`least_squares`: SciPy's costs, closed forms, steps, covariances, both methods."""

from __future__ import annotations

import math

import pytest
import torch

import hesse
from hesse.optimize.squares.bidiagonal import bidiagonal_steps
from hesse.optimize.squares.newton_family import NewtonFamily
from hesse.optimize.squares.radius_search import CAREFUL, LONG, LinearModel, RadiusSearch
from hesse.optimize.squares.residual_point import Residuals
from hesse.optimize.squares.robust_loss import RobustLoss
from hesse.optimize.squares.step_family import from_dense
from hesse.testing.smooth import smooth_problems
from tests.curve_fits import DOUBLE, LOWER, MGH, TIGHT, fit, gaussian, scipy_fit_of, vector

# --------------------------------------------------------------------------------------------------
# Oracles


@pytest.mark.fast_cases(6)
@pytest.mark.parametrize("name", MGH)
def test_the_cost_is_that_of_scipy(name):
    problem = MGH[name]
    result, expected = fit(name), scipy_fit_of(name)
    assert result.success
    size = 0.5 * float(problem.f(problem.x))
    if name in LOWER:
        assert 2 * result.cost == pytest.approx(LOWER[name], rel=1e-6, abs=1e-15 * size)
        assert result.cost < expected.cost
    elif expected.cost < 1e-12 * size:  # zero: SciPy stops earlier
        assert result.cost < max(1e-20 * size, 2 * expected.cost)
    else:
        assert result.cost == pytest.approx(expected.cost, rel=1e-8)


@pytest.mark.slow
def test_fewer_jacobians_than_scipy():
    names = [name for name in MGH if name not in LOWER]
    assert sum(fit(n).njev for n in names) < sum(scipy_fit_of(n).njev for n in names)


@pytest.mark.parametrize("method", ["svd", "lsmr"])
@pytest.mark.parametrize("shape", [(12, 5), (5, 5), (4, 7)])
def test_linear_problems_are_solved_as_by_their_pseudo_inverse(method, shape):
    A, b = gaussian(*shape), gaussian(shape[0], seed=1)
    result = hesse.least_squares(lambda x: A @ x - b, torch.zeros(shape[1], dtype=DOUBLE), method)
    assert result.success
    expected = torch.linalg.lstsq(A, b, driver="gelsd").solution
    assert torch.allclose(A @ result.x, A @ expected, rtol=0, atol=1e-9)
    if shape[0] >= shape[1]:
        assert torch.allclose(result.x, expected, rtol=1e-8)


@pytest.mark.parametrize("name", ["wood", "kowalik_osborne", "osborne_1", "broyden_banded(n=10)"])
def test_both_methods_find_the_same(name):
    problem = MGH[name]
    by_matrix = fit(name)
    by_products = hesse.least_squares(problem.residuals, problem.x, "lsmr", **TIGHT)
    assert by_products.success
    assert by_products.cost == pytest.approx(by_matrix.cost, rel=1e-8, abs=1e-24)


def test_a_large_problem_takes_products_alone():
    problem = {p.name: p for p in smooth_problems()}["broyden_tridiagonal(n=1000)"]
    result = hesse.least_squares(problem.residuals, problem.x, "lsmr")
    assert result.success
    assert result.cost < 1e-16
    assert result.products < 300
    assert result.rank is None
    assert result.standard_errors is None


def test_accuracy_is_that_of_the_jacobian_not_of_its_square():
    """With a condition of 1e9 the normal equations would lose all digits of the small direction."""
    U = torch.linalg.qr(gaussian(8, 3)).Q
    V = torch.linalg.qr(gaussian(3, 3, seed=1)).Q
    A = U @ torch.diag(vector(1.0, 1e-4, 1e-9)) @ V.T
    x = vector(1.0, 2.0, 3.0)
    result = hesse.least_squares(lambda y: A @ (y - x), torch.zeros(3, dtype=DOUBLE), **TIGHT)
    assert torch.allclose(result.x, x, rtol=1e-5)


# --------------------------------------------------------------------------------------------------
# The steps


@pytest.mark.parametrize("radius", [0.01, 0.3, 100.0])
def test_steps_are_those_of_the_damped_normal_equations(radius):
    A, f = gaussian(9, 4), gaussian(9, seed=1)
    step = from_dense(A, f, 1e-15, DOUBLE).within(radius)
    H = A.T @ A + step.damping * torch.eye(4, dtype=DOUBLE)
    assert torch.allclose(step.p, -torch.linalg.solve(H, A.T @ f), rtol=1e-10)
    assert step.length == pytest.approx(float(step.p.norm()), rel=1e-12)
    assert step.length <= radius * (1 + 2e-3)
    decrease = 0.5 * float(f @ f - (f + A @ step.p) @ (f + A @ step.p))
    assert step.predicted == pytest.approx(decrease, rel=1e-11)
    assert step.is_limited == (radius < 1)


def graded(rows, columns, smallest):
    """A matrix with singular values from 1 down to `smallest`, equally apart in the logarithm."""
    U, V = (torch.linalg.qr(gaussian(k, columns, seed=k))[0] for k in (rows, columns))
    return (U * torch.logspace(0, math.log10(smallest), columns, dtype=DOUBLE)) @ V.T


@pytest.mark.parametrize("radius", [0.01, 0.3, 30.0])
def test_steps_of_a_matrix_in_single_precision_are_those_of_double(radius):
    A = graded(60, 12, 1e-5).float()
    f = gaussian(60, seed=1)
    family = from_dense(A, f.float(), 1.2e-7, torch.float32)
    expected = from_dense(A.double(), f.float(), 1e-15, DOUBLE)
    assert family.rank == 12
    assert torch.allclose(family.s, expected.s, rtol=0, atol=1e-7)
    ours, theirs = family.within(radius), expected.within(radius)
    assert ours.damping == pytest.approx(theirs.damping, rel=1e-3)
    assert ours.predicted == pytest.approx(theirs.predicted, rel=1e-5)
    assert (ours.p.double() - theirs.p).norm() <= 1e-5 * theirs.p.norm()
    r = gaussian(60, seed=2)
    bent, other = family.correction(r, ours.damping), expected.correction(r, theirs.damping)
    assert (bent.double() - other).norm() <= 1e-4 * other.norm()


def test_small_singular_values_count_whatever_the_number_of_rows():
    """eps times 3,000 rows is 4e-4 in single precision, and hides none of these."""
    A = graded(3000, 8, 1e-5).float()
    b = A @ torch.ones(8)
    result = hesse.least_squares(lambda x: A @ x - b, torch.zeros(8), "svd", ftol=0.0, xtol=0.0)
    assert torch.allclose(result.x, torch.ones(8), atol=2e-2)


@pytest.mark.parametrize("name", ["wood", "meyer", "osborne_1", "kowalik_osborne"])
def test_the_longest_good_step_is_taken(name):
    """By the rule of long steps; beyond it the cost falls by less than 15 % of what is promised."""
    problem = MGH[name]
    start = hesse.jacobian_operator(problem.residuals, problem.x)
    residuals = Residuals(problem.residuals, start, RobustLoss(), is_dense=True)
    point = residuals.point(problem.x)
    scale = torch.ones_like(problem.x)
    family = from_dense(point.matrix, point.r, 1e-15, DOUBLE)
    model = LinearModel(point, family, scale, None, lambda step: point.matrix @ step)
    search = RadiusSearch(residuals, None, 1e-2 * float(problem.x.norm()), LONG)
    for _ in range(12):  # until the radius is that of this point
        best = search.search(model)
    assert best.ratio > 0.15
    radii = [best.radius * factor for factor in (1.3, 2.0, 3.0)]
    assert not best.is_limited or all(search._trial(model, r).ratio <= 0.15 for r in radii)


@pytest.mark.parametrize("name", ["wood", "kowalik_osborne", "osborne_1", "biggs_exp6"])
def test_long_steps_find_the_same(name):
    problem = MGH[name]
    expected, result = fit(name), hesse.least_squares(problem.residuals, problem.x, "svd-long")
    assert result.success
    assert result.cost == pytest.approx(expected.cost, rel=1e-6, abs=1e-12)
    assert result.nfev > 2 * result.njev


def test_long_steps_come_back_from_beyond_the_last_radius():
    """The first that is tried is good, and the next search begins at three times its radius."""
    A, f = gaussian(9, 4), gaussian(9, seed=1)
    start = hesse.jacobian_operator(lambda x: A @ x + f, torch.zeros(4, dtype=DOUBLE))
    residuals = Residuals(lambda x: A @ x + f, start, RobustLoss(), is_dense=True)
    point = residuals.point(torch.zeros(4, dtype=DOUBLE))
    family = from_dense(A, f, 1e-15, DOUBLE)
    model = LinearModel(point, family, torch.ones(4, dtype=DOUBLE), None, lambda p: A @ p)
    for rule, factor in ((CAREFUL, 2.0), (LONG, 3.0)):
        search = RadiusSearch(residuals, None, 1e-3 * family.full_length, rule)
        best = search.search(model)
        assert best.ratio == pytest.approx(1.0)
        assert best.radius == pytest.approx(1e-3 * family.full_length * factor**rule.growths)
        assert search.radius == pytest.approx(factor * best.radius)


@pytest.mark.parametrize("shape", [(9, 4), (3, 6)])
def test_the_bidiagonalisation_gives_the_same_steps(shape):
    A, f = gaussian(*shape), gaussian(shape[0], seed=1)
    expected = from_dense(A, f, 1e-14, DOUBLE)
    family = bidiagonal_steps(
        hesse.dense_operator(A), f, 0.1, rtol=0.0, epsilon=1e-16, goes_on=lambda products: True
    )
    assert family.is_complete
    for radius in (0.1, 0.5, 100.0):
        ours, theirs = family.within(radius), expected.within(radius)
        assert torch.allclose(ours.p, theirs.p, rtol=1e-8, atol=1e-10)
        assert ours.predicted == pytest.approx(theirs.predicted, rel=1e-8)


def test_the_bidiagonalisation_stops_when_the_damped_gradient_is_small():
    A, f = gaussian(60, 40), gaussian(60, seed=1)
    family = bidiagonal_steps(
        hesse.dense_operator(A), f, 0.1, rtol=1e-2, epsilon=1e-16, goes_on=lambda products: True
    )
    step = family.within(0.1)
    gradient = A.T @ (f + A @ step.p) + step.damping * step.p
    assert gradient.norm() <= 1.01e-2 * (A.T @ f).norm()
    assert family.products < 40


@pytest.mark.parametrize("radius", [0.05, 0.4, 50.0])
@pytest.mark.parametrize("lowest", [-2.0, 0.0, 0.3])
@pytest.mark.parametrize("hard", [False, True])
def test_newton_steps_are_minima_within_the_radius(radius, lowest, hard):
    """By the conditions of More and Sorensen, which are necessary and sufficient."""
    Q = torch.linalg.qr(gaussian(5, 5)).Q
    H = Q @ torch.diag(vector(lowest, 0.5, 1.0, 2.0, 4.0)) @ Q.T
    g = gaussian(5, seed=1)
    g = g - hard * Q[:, 0] * (Q[:, 0] @ g)
    step = NewtonFamily(H, g, DOUBLE).within(radius)
    assert step.length == pytest.approx(float(step.p.norm()), rel=1e-10)
    assert step.length <= radius * (1 + 2e-3)
    shifted = H + step.damping * torch.eye(5, dtype=DOUBLE)
    assert torch.allclose(shifted @ step.p, -g, rtol=0, atol=1e-7)
    assert float(torch.linalg.eigvalsh(shifted)[0]) >= -1e-9
    assert step.damping >= 0
    if step.damping > 1e-12:
        assert step.length == pytest.approx(radius, rel=2e-3)
    value = float(g @ step.p + 0.5 * step.p @ H @ step.p)
    assert step.predicted == pytest.approx(-value, rel=1e-8)


@pytest.mark.parametrize("loss", ["linear", "soft_l1", "cauchy"])
def test_the_model_with_second_derivatives_has_the_hessian_of_the_cost(loss):
    problem = MGH["kowalik_osborne"]
    robust = RobustLoss(loss, 0.02)
    rho = {"linear": lambda z: z, "soft_l1": lambda z: 2 * (torch.sqrt(1 + z) - 1)}

    def cost(x):
        z = (problem.residuals(x) / robust.scale) ** 2
        return 0.5 * robust.scale**2 * rho.get(loss, torch.log1p)(z).sum()

    start = hesse.jacobian_operator(problem.residuals, problem.x)
    point = Residuals(problem.residuals, start, robust, is_dense=True).point(problem.x)
    assert point.cost == pytest.approx(float(cost(problem.x)), rel=1e-12)
    H = point.matrix.T @ point.matrix + point.second_order
    assert torch.allclose(H, torch.func.hessian(cost)(problem.x), rtol=1e-9)
    assert torch.allclose(point.gradient, torch.func.grad(cost)(problem.x), rtol=1e-10)


@pytest.mark.parametrize("name", ["freudenstein_roth", "jennrich_sampson", "brown_dennis"])
def test_large_residuals_converge_quadratically_at_the_end(name):
    result = fit(name)
    assert result.nhev > 0
    assert result.njev < 0.8 * scipy_fit_of(name).njev + 10
    assert result.optimality <= 1e-9 * result.history[0][1]


# --------------------------------------------------------------------------------------------------
# The result


def test_the_covariance_is_that_of_the_definition():
    problem = MGH["kowalik_osborne"]
    result = hesse.least_squares(problem.residuals, problem.x, **TIGHT)
    J = torch.func.jacrev(problem.residuals)(result.x)
    expected = 2 * result.cost / (11 - 4) * torch.linalg.inv(J.T @ J)
    assert torch.allclose(result.covariance.to_dense(), expected, rtol=1e-6)
    assert torch.allclose(result.standard_errors, expected.diagonal().sqrt(), rtol=1e-6)
    assert torch.allclose(result.jac.to_dense(), J, rtol=1e-10)
    assert torch.allclose(result.grad, J.T @ problem.residuals(result.x), atol=1e-14)
    large = hesse.least_squares(problem.residuals, problem.x, "lsmr", **TIGHT)
    assert torch.allclose(large.covariance.to_dense(), expected, rtol=1e-4)


def test_a_rank_deficient_jacobian_is_said():
    t = torch.linspace(0, 1, 9, dtype=DOUBLE)
    r0 = 0.1 * gaussian(9)
    result = hesse.least_squares(lambda x: (x[0] + x[1]) * t + x[2] - r0, vector(1.0, 2.0, 3.0))
    assert result.success
    assert result.rank == 2
    errors = result.standard_errors.tolist()
    assert errors[:2] == [math.inf, math.inf]
    assert errors[2] < 1.0
    A = torch.stack([t, torch.ones_like(t)], 1)  # the sum of the first two is determined
    expected = 2 * result.cost / 7 * torch.linalg.inv(A.T @ A)
    v = vector(1.0, 1.0, 0.0)
    assert float(result.covariance.curvature(v)) == pytest.approx(float(expected[0, 0]), rel=1e-8)


def test_no_covariance_without_residuals_to_spare():
    result = hesse.least_squares(lambda x: x - 1.0, torch.zeros(3, dtype=DOUBLE))
    assert result.covariance is None
    assert result.standard_errors is None


@pytest.mark.parametrize("method", ["svd", "lsmr"])
def test_variables_at_a_bound_have_no_variance(method):
    A, b = gaussian(9, 3), gaussian(9, seed=1)
    result = hesse.least_squares(
        lambda x: A @ x - b,
        torch.ones(3, dtype=DOUBLE),
        method,
        bounds=(vector(0.9, -9.0, -9.0), None),
        **TIGHT,
    )
    assert result.active_mask.tolist() == [-1.0, 0.0, 0.0]
    C = result.covariance.to_dense()
    assert not C[0].any()
    expected = 2 * result.cost / (9 - 2) * torch.linalg.inv(A[:, 1:].T @ A[:, 1:])
    assert torch.allclose(C[1:, 1:], expected, rtol=1e-8)


def test_a_model_in_float32_with_a_tree_of_parameters():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(1, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1))
    inputs = torch.linspace(-1, 1, 40)[:, None]
    targets = torch.sin(3 * inputs)
    params = {name: p.detach().clone() for name, p in model.named_parameters()}

    def r(params):
        return torch.func.functional_call(model, params, (inputs,)) - targets

    result = hesse.least_squares(r, params)
    assert result.fun.shape == (40, 1)
    assert result.x["0.weight"].dtype == torch.float32
    assert 2 * result.cost / 40 < 1e-6
    assert 2 * result.cost == pytest.approx(float(r(result.x).square().sum()), rel=1e-3)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_risk_with_a_squared_loss_is_a_sum_of_squares(reduction):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
    batches = [(gaussian(n, 2, seed=n), gaussian(n, 3, seed=n + 1)) for n in (7, 12, 5)]
    loss = torch.nn.MSELoss(reduction=reduction)
    risk = hesse.Risk(model.double(), loss, batches, weight_decay=0.01)
    H = hesse.hessian_operator(risk, risk.params)
    for method in ("svd", "lsmr"):
        start = hesse.least_squares(risk, risk.params, method, max_iterations=0)
        assert start.cost == pytest.approx(float(risk(risk.params)), rel=1e-12)
        gradient = H.domain.flatten(start.grad)
        assert torch.allclose(gradient, H.flat_gradient, rtol=1e-10, atol=1e-14)
    result = hesse.least_squares(risk, risk.params, **TIGHT)
    assert result.success
    there = hesse.hessian_operator(risk, result.x)
    assert float(there.flat_gradient.norm()) <= 1e-5 * float(H.flat_gradient.norm())
    assert float(torch.linalg.eigvalsh(there.to_dense())[0]) > 0


def test_the_number_of_evaluations_is_that_of_calls():
    calls = []

    def r(x):
        calls.append(x)
        return torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])

    result = hesse.least_squares(r, vector(-1.2, 1.0), "svd")
    plain = [x for x in calls if not torch._C._functorch.is_functorch_wrapped_tensor(x)]
    assert result.nfev <= len(plain) <= result.nfev + 4  # and for the shape and the test of J
    assert result.nit + 1 == len(result.history)
    assert result.njev <= result.nit + 2


@pytest.mark.some_cases(9)
@pytest.mark.parametrize("method", ["svd", "svd-long", "lsmr"])
@pytest.mark.parametrize(("dtype", "unit"), [
    (DOUBLE, 1e-75), (DOUBLE, 1e-40), (DOUBLE, 1e75), (torch.float32, 1e-16), (torch.float32, 1e16),
])  # fmt: skip
def test_the_unit_of_the_residuals_does_not_matter(method, dtype, unit):
    """Rosenbrock's residuals; the first radius is in this unit, where columns have norm one."""

    def r(x):
        return unit * torch.cat([10 * (x[1:] - x[:-1] ** 2), 1 - x[:-1]])

    result = hesse.least_squares(r, torch.zeros(5, dtype=dtype), method)
    assert result.success, result.message
    torch.testing.assert_close(result.x, torch.ones(5, dtype=dtype), rtol=0, atol=1e-4)


def test_residuals_whose_squares_vanish_are_said():
    with pytest.warns(UserWarning, match="too small for their squares to be numbers of .*float32"):
        hesse.least_squares(lambda x: 1e-25 * (x - 1), torch.zeros(3))


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 1e10), (DOUBLE, 1e12)])
def test_short_steps_that_grow_are_not_the_last(dtype, scale):
    """From a radius of 1, where x is as large as `scale`, the cost falls by rounding at first."""

    def r(x):
        y = x / scale
        return torch.cat([10 * (y[1:] - y[:-1] ** 2), 1 - y[:-1]])

    result = hesse.least_squares(r, torch.zeros(5, dtype=dtype), "lsmr")
    assert result.success
    torch.testing.assert_close(result.x / scale, torch.ones(5, dtype=dtype), rtol=0, atol=1e-4)
