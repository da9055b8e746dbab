# SPDX-License-Identifier: Apache-2.0
"""What `minimize` calls a success: a small gradient on f's own scale, and no way down."""

import math

import pytest
import torch

from hesse.errors import NonFiniteError, Status
from hesse.optimize import minimize
from tests.smooth_functions import rosenbrock

DOUBLE = torch.float64
METHODS = ["enriched", "newton-cg", "trust-cg", "trust-krylov", "cubic", "lbfgs", "newton-minres"]


def vector(*entries):
    return torch.tensor(entries, dtype=DOUBLE)


def smallest_eigenvalue(f, x):
    H = torch.autograd.functional.hessian(f, x)
    return float(torch.linalg.eigvalsh(H.reshape(x.numel(), x.numel()))[0])


@pytest.mark.slow
@pytest.mark.some_cases(7)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("start", [10.0, 1e3])
def test_a_bad_start_does_not_loosen_the_tolerance(method, start):
    result = minimize(rosenbrock, start * torch.ones(4, dtype=DOUBLE), method)
    assert result.success
    assert float(result.jac.norm()) <= 1e-8
    loose = minimize(rosenbrock, start * torch.ones(4, dtype=DOUBLE), method, rtol=1e-3)
    assert loose.success
    assert float(loose.jac.norm()) <= 1e-3


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("method", METHODS)
def test_a_cluster_of_atoms_ends_in_a_minimum(method):
    i, j = torch.triu_indices(13, 13, 1)

    def energy(x):
        s = ((x[i] - x[j]) ** 2).sum(-1).pow(-3)
        return (4 * (s * s - s)).sum()

    generator = torch.Generator().manual_seed(1)
    start = 4.0 * torch.rand(13, 3, dtype=DOUBLE, generator=generator)
    result = minimize(energy, start, method)
    assert result.success
    assert float(result.jac.norm()) <= 1e-8
    assert smallest_eigenvalue(energy, result.x) > -1e-6  # six are zero


@pytest.mark.some_cases(13)
@pytest.mark.fast_cases(6)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e10])
def test_the_scale_of_f_does_not_matter(method, scale):
    result = minimize(lambda x: scale * rosenbrock(x), vector(-1.2, 1.0), method)
    assert result.success
    torch.testing.assert_close(result.x, vector(1.0, 1.0), atol=1e-6, rtol=0)


STATIONARY = {  # function, stationary start that is no minimum, the minimum
    "maximum": (lambda x: torch.cos(x).sum(), torch.zeros(3, dtype=DOUBLE), -3.0),
    "saddle": (lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4, vector(0.0, 0.0), -0.25),
    "saddle on a line": (lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4, vector(1.0, 0.0), -0.25),
    "high": (lambda x: 1e6 + x[0] ** 2 - x[1] ** 2 + x[1] ** 4, vector(0.0, 0.0), 1e6 - 0.25),
    "monkey saddle": (
        lambda x: x[0] ** 3 - 3 * x[0] * x[1] ** 2 + (x**2).sum() ** 2, vector(0.0, 0.0), -27 / 256
    ),
    "factors": (
        lambda U: ((U @ U.T - torch.diag(vector(3.0, 2.0, 1.0, 0.0))) ** 2).sum(),
        torch.zeros(4, 2, dtype=DOUBLE), 1.0,
    ),
    "many quartics": (lambda x: ((x**2 - 1) ** 2).sum(), torch.zeros(30, dtype=DOUBLE), 0.0),
}  # fmt: skip


@pytest.mark.some_cases(28)
@pytest.mark.fast_cases(20)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", STATIONARY)
def test_a_maximum_or_saddle_point_is_left(name, method):
    f, start, lowest = STATIONARY[name]
    result = minimize(f, start, method)
    assert result.success, result.message
    assert result.fun == pytest.approx(lowest, abs=1e-8)
    assert smallest_eigenvalue(f, result.x) > -1e-6


def test_a_saddle_point_without_lower_values_in_reach_is_no_success():
    # Curvature -2 at 0, but a wall from 1e-20 on: no trial length is short enough.
    def f(x):
        return torch.where(x.abs() < 1e-20, -(x**2), -(x**2) + 1 + 1e3 * x.detach().abs()).sum()

    result = minimize(f, torch.zeros(2, dtype=DOUBLE))
    assert result.status is Status.SADDLE_POINT
    assert not result.success
    assert result.min_curvature == pytest.approx(-2.0)


UNBOUNDED = {
    "linear": (lambda x: x.sum(), vector(1.0, 2.0)),
    "concave": (lambda x: -(x**2).sum(), vector(0.0, 0.0)),
    "cubic": (lambda x: (x**3).sum(), vector(1.0, 0.5)),
    "monkey saddle": (lambda x: x[0] ** 3 - 3 * x[0] * x[1] ** 2, vector(0.0, 0.0)),
    "exponential": (lambda x: -torch.exp(x).sum(), vector(0.0)),
    "with a vanishing gradient": (lambda x: -torch.log(x).sum(), vector(1.0)),
}


@pytest.mark.some_cases(24)
@pytest.mark.fast_cases(5)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", UNBOUNDED)
def test_a_function_without_a_minimum_is_a_status(name, method):
    f, start = UNBOUNDED[name]
    result = minimize(f, start, method)
    assert result.status is Status.UNBOUNDED
    assert not result.success
    assert result.fun < min(-50.0, float(f(start)))
    assert math.isfinite(result.fun)


@pytest.mark.some_cases(7)
@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("start", [-700.0, 700.0])
def test_values_that_nearly_overflow_are_minimised(method, start):
    result = minimize(lambda x: (torch.exp(x) - x).sum(), vector(start), method)
    assert result.success
    torch.testing.assert_close(result.x, vector(0.0), atol=1e-7, rtol=0)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("method", METHODS)
def test_a_kink_stagnates_at_the_best_point(method):
    # The values still halve, down to the smallest numbers there are.
    result = minimize(
        lambda x: torch.sqrt((x**2).sum()), vector(3.0, -1.0), method, max_iterations=100
    )
    assert not result.success
    assert result.fun < 1e-6
    values = [value for value, _ in result.history]
    # To rounding: the last steps are judged by the gradient.
    assert result.fun == pytest.approx(min(values), rel=1e-14)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("lbfgs", "enriched")])
def test_a_warm_start_costs_less_than_a_cold_one(method):
    cold = minimize(rosenbrock, vector(-1.2, 1.0), method)
    for start in (cold.x, cold.x + 1e-9, cold.x + 1e-5):
        warm = minimize(rosenbrock, start, method)
        assert warm.success
        assert warm.nhev <= 10


def test_the_certificate_takes_a_tenth_of_the_products_or_ten():
    d = torch.linspace(1.0, 2.0, 500, dtype=DOUBLE)
    seen = []
    result = minimize(
        lambda x: (d * (x - 1) ** 2).sum(), torch.zeros(500, dtype=DOUBLE),
        callback=lambda state: seen.append(state.products),
    )  # fmt: skip
    assert result.success
    assert result.min_curvature > 1.0
    assert result.nhev <= seen[-1] + 25 + 10


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "error", [ValueError, RuntimeError, ArithmeticError, torch.linalg.LinAlgError]
)
def test_a_trial_point_at_which_f_raises_is_rejected(method, error):
    def f(x):
        if bool((x <= 0).any()):
            raise error("outside of the domain")
        return x.sum() - torch.log(x).sum()

    result = minimize(f, 5 * torch.ones(3, dtype=DOUBLE), method)
    assert result.success
    torch.testing.assert_close(result.x, torch.ones(3, dtype=DOUBLE), atol=1e-7, rtol=0)
    raised = result.message.count("outside of the domain")
    assert raised == (1 if method == "newton-cg" else raised)


def test_a_precision_matrix_is_fitted_from_far():
    S = torch.diag(vector(1.0, 2.0, 3.0))

    def f(X):
        X = (X + X.T) / 2
        return -2 * torch.linalg.cholesky(X).diagonal().log().sum() + torch.trace(S @ X)

    result = minimize(f, 10 * torch.eye(3, dtype=DOUBLE))
    assert result.success
    torch.testing.assert_close((result.x + result.x.T) / 2, S.inverse(), atol=1e-7, rtol=0)


@pytest.mark.parametrize("error", [TypeError, KeyError, NotImplementedError])
def test_a_fault_of_f_is_raised(error):
    def f(x):
        if float(x[0].detach()) != 5.0:
            raise error("a fault")
        return (x**2).sum()

    with pytest.raises(error, match="a fault"):
        minimize(f, vector(5.0, 5.0))


def test_what_f_raises_at_the_start_is_raised():
    def f(x):
        raise ValueError("not here")

    with pytest.raises(ValueError, match="not here"):
        minimize(f, vector(1.0))
    with pytest.raises(NonFiniteError, match="x0"):
        minimize(lambda x: torch.log(x).sum(), vector(0.0))


@pytest.mark.parametrize("method", METHODS)
def test_a_point_without_a_gradient_is_rejected(method):
    def f(x):  # the gradient is NaN for x < 0, where the value is lower
        return torch.where(x > 0, (x - 1) ** 2, torch.sqrt(torch.relu(x)) - 1).sum()

    result = minimize(f, vector(3.0), method)
    assert math.isfinite(result.fun)
    assert bool(torch.isfinite(result.jac).all())


def test_the_hessian_tells_a_saddle_point_of_a_gauss_newton_run():
    """G is positive semi-definite at a saddle point of the risk; its Hessian is not."""
    from torch import nn

    from hesse.risk.risk import Risk

    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    x = torch.eye(2, dtype=DOUBLE)
    risk = Risk(model, nn.MSELoss(), (x, x.sum(1, keepdim=True)))
    result = minimize(risk, risk.params, curvature="ggn")
    assert result.success
    assert result.fun == pytest.approx(0.0, abs=1e-10)
