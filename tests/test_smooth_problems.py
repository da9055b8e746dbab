# SPDX-License-Identifier: Apache-2.0
"""The smooth problems of the kit: gradients, known minima, and published values at the start."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import torch

from hesse.testing.smooth import clusters, smooth_problems

PROBLEMS = {problem.name: problem for problem in smooth_problems()}

# |r(x0)| as printed by the test programs of MINPACK (Garbow, Hillstrom & More 1980), but for those
# of Rosenbrock, Powell, Wood and Beale, whose f is exact.
START_NORMS = {
    "mgh_rosenbrock": 24.2**0.5,
    "beale": 14.203125**0.5,
    "powell_singular": 215.0**0.5,
    "wood": 19192.0**0.5,
    "helical_valley": 50.0,
    "freudenstein_roth": 20.0124961,
    "bard": 6.45613630,
    "kowalik_osborne": 0.0728915102,
    "meyer": 41153.4665543,
    "watson(n=6)": 5.47722558,
    "box_3d": 32.1115837,
    "jennrich_sampson": 64.5856498,
    "brown_dennis": 2815.43839,
    "brown_almost_linear(n=10)": 16.5302162,
    "osborne_1": 0.937564022,
    "osborne_2": 1.446865,
}

# f(x0) by hand.
START_VALUES = {
    "arwhead(n=10)": 27.0,  # 9 (1 + 1)^2 - 36 + 27
    "cube": 10.0**2 * (1 + 1.2**3) ** 2 + 2.2**2,
    "dixmaan_a(n=15)": 1 + 15 * 4 + 0.125 * (10 * 64 + 5 * 4),
    "himmelblau": 81.0 + 25.0,
    "tridia(n=10)": 54.0,  # 2 + ... + 10
    "raydan_2(n=10)": 10 * (math.e - 1),
    "engval1(n=100)": 99 * (64.0 - 8 + 3),
    "liarwhd(n=10)": 10 * (4 * 144.0 + 9),
}


@pytest.mark.fast_cases(60)
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=str)
def test_the_gradient_is_that_of_differences(problem):
    near = problem.near(0, spread=0.01)
    x, v = near.x.clone().requires_grad_(), problem.direction(1)
    v = v / v.norm()
    value = problem.f(x)
    (gradient,) = torch.autograd.grad(value, x)
    x, value = near.x, float(value.detach())
    h = 1e-4 * max(1.0, float(x.norm()) ** 0.5)
    with torch.no_grad():  # of fourth order
        f = [float(problem.f(x + k * h * v)) for k in (-2, -1, 1, 2)]
    slope = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h)
    noise = 1e-15 * max(abs(value), float(x.norm() * gradient.norm())) / h
    assert float(gradient @ v) == pytest.approx(slope, rel=2e-5, abs=100 * noise + 1e-9)


@pytest.mark.fast_cases(40)
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=str)
def test_the_residuals_are_those_of_f(problem):
    assert problem.x.dtype == torch.float64
    assert problem.f(problem.x).shape == ()
    if problem.residuals is not None:
        r = problem.residuals(problem.x)
        assert r.ndim == 1
        assert float(r @ r) == pytest.approx(float(problem.f(problem.x)), rel=1e-14)


@pytest.mark.fast_cases(40)
@pytest.mark.parametrize(
    "problem", [p for p in PROBLEMS.values() if p.minimiser is not None], ids=str
)
def test_the_minimiser_has_the_least_value_and_no_gradient(problem):
    x = problem.minimiser.clone().requires_grad_()
    value = problem.f(x)
    (gradient,) = torch.autograd.grad(value, x)
    assert float(value.detach()) == pytest.approx(problem.minimum, rel=1e-13, abs=1e-13)
    assert float(gradient.norm()) < 1e-8
    around = [float(problem.f(x.detach() + 1e-3 * problem.direction(seed))) for seed in range(5)]
    assert min(around) >= problem.minimum - 1e-13 * abs(problem.minimum)


def _descend(problem):
    """The least value that SciPy finds from the start."""

    def at(function):
        return lambda x: function(torch.from_numpy(x)).numpy()

    x0 = problem.x.numpy()
    if problem.residuals is None:
        gradient = at(torch.func.grad(problem.f))
        options = {"gtol": 1e-9, "maxiter": 5000}
        return scipy.optimize.minimize(
            at(problem.f), x0, jac=gradient, method="BFGS", options=options
        ).fun
    J = at(torch.func.jacrev(problem.residuals))
    tolerances = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15}
    return (
        2
        * scipy.optimize.least_squares(
            at(problem.residuals), x0, J, x_scale="jac", max_nfev=3000, **tolerances
        ).cost
    )


def _unit_of_last_digit(value: float) -> float:
    mantissa, _, exponent = f"{value!r}".partition("e")
    digits = len(mantissa.partition(".")[2])
    return max(10.0 ** (int(exponent or 0) - digits), 1e-11 * abs(value), 1e-11)


def _has_published_minimum(problem):
    return problem.minimum is not None and problem.minimiser is None and problem.space.n <= 120


@pytest.mark.fast_cases(4)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "problem", [p for p in PROBLEMS.values() if _has_published_minimum(p)], ids=str
)
def test_another_library_finds_the_published_minimum(problem):
    least = _descend(problem)
    unit = _unit_of_last_digit(problem.minimum)
    assert least >= problem.minimum - unit
    at_lowest = least == pytest.approx(problem.minimum, rel=0, abs=unit)
    known = any(
        math.isnan(local) or least == pytest.approx(local, rel=1e-5)
        for local in problem.local_minima
    )
    assert at_lowest or known


@pytest.mark.parametrize("name", START_NORMS)
def test_published_norms_at_the_start(name):
    problem = PROBLEMS[name]
    norm, published = float(problem.f(problem.x)) ** 0.5, START_NORMS[name]
    assert norm == pytest.approx(published, rel=0, abs=_unit_of_last_digit(published))


@pytest.mark.parametrize("name", START_VALUES)
def test_values_at_the_start_by_hand(name):
    problem = PROBLEMS[name]
    assert float(problem.f(problem.x)) == pytest.approx(START_VALUES[name], rel=1e-14)


def test_the_published_clusters():
    """The octahedron of 6 and the icosahedron of 13 points, relaxed."""
    golden = (1 + 5**0.5) / 2
    octahedron = np.concatenate([np.eye(3), -np.eye(3)]) * 0.8
    ring = [(0, a, b * golden) for a in (-1, 1) for b in (-1, 1)]
    icosahedron = [np.roll(p, k) for p in ring for k in range(3)]
    scaled = np.array(icosahedron) / np.linalg.norm(icosahedron[0]) * 1.08
    thirteen = np.concatenate([np.zeros((1, 3)), scaled])
    for points, corners in [(6, octahedron), (13, thirteen)]:
        problem = clusters.lennard_jones(points)
        f = torch.func.grad_and_value(problem.f)

        def value_and_gradient(x, f=f):
            gradient, value = f(torch.from_numpy(x))
            return float(value), gradient.numpy()

        result = scipy.optimize.minimize(value_and_gradient, corners.ravel(), jac=True, tol=1e-10)
        assert result.fun == pytest.approx(problem.minimum, abs=1e-6)


def test_all_problems_hold_in_float32():
    for problem in PROBLEMS.values():
        assert problem.f(problem.x.float()).dtype == torch.float32, problem.name
