# SPDX-License-Identifier: Apache-2.0
"""`NewtonDirect`: steps by factors, by conjugate gradients with earlier factors, and the proof."""

import pytest
import torch

import hesse
from benchmarks.large.functions import FUNCTIONS
from hesse.errors import ArgumentError, OperatorError, Status
from hesse.krylov.secular import within_ball
from hesse.operators.sparse import operator as sparse_operator
from hesse.optimize import minimize
from hesse.optimize.method import Setting
from hesse.optimize.newton_direct import FactorisedNewton
from hesse.optimize.point import Objective
from hesse.progress import Run
from tests.smooth_functions import rosenbrock, wood
from tests.sparse_functions import DOUBLE, bratu


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def dense(f, x):
    return hesse.dense_operator(torch.func.hessian(f)(x))


DIRECT = {  # function, start, minimum
    "rosenbrock": (rosenbrock, [-1.2, 1.0], 0.0),
    "wood": (wood, [-3.0, -1.0, -3.0, -1.0], 0.0),
    "saddle on a line": (lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4, [1.0, 0.0], -0.25),
    "maximum": (lambda x: torch.cos(x).sum(), [0.0, 0.0, 0.0], -3.0),
    "singular": (lambda x: (x[0] + x[1] - 1) ** 2 + (x[0] + x[1]) ** 4, [2.0, 3.0], 0.2890),
    "indefinite": (lambda x: ((x**2 - 1) ** 2).sum() + 0.1 * x.sum(), [0.1, -0.1, 0.2], None),
}


@pytest.mark.some_cases(8)
@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("curvature", [dense, hesse.sparse_hessian_operator])
@pytest.mark.parametrize("name", DIRECT)
def test_newton_direct_finds_the_minimum(name, curvature):
    f, start, lowest = DIRECT[name]
    start = torch.tensor(start, dtype=DOUBLE)
    result = minimize(f, start, "newton-direct", curvature=curvature)
    assert result.success, result.message
    assert float(torch.linalg.eigvalsh(torch.func.hessian(f)(result.x))[0]) > -1e-6
    if lowest is not None:
        assert result.fun == pytest.approx(lowest, abs=1e-3 if name == "singular" else 1e-9)


@pytest.mark.parametrize("radius", [1e-3, 0.5, 20.0])
@pytest.mark.parametrize("shift", [-5.0, 0.0, 15.0])
def test_a_direct_step_is_nearly_the_minimum_in_the_ball(shift, radius):
    """Against the secular equation in the eigenbasis: a tenth of the radius is left to chance."""
    A = torch.randn(12, 12, dtype=DOUBLE, generator=seeded())
    H = A + A.T + shift * torch.eye(12, dtype=DOUBLE)
    g = torch.randn(12, dtype=DOUBLE, generator=seeded(1))
    values, vectors = torch.linalg.eigh(H)
    for slope in (g, g - vectors[:, 0] * (vectors[:, 0] @ g)):  # the second is the hard case

        def f(x, slope=slope):
            return 0.5 * x @ H @ x + slope @ x

        x = torch.zeros(12, dtype=DOUBLE)
        objective = Objective(
            hesse.hessian_operator(f, x), matrix=lambda _: hesse.dense_operator(H)
        )
        setting = Setting(None, lambda: Run("minimize"), lambda _: hesse.dense_operator(H))
        best = FactorisedNewton(setting).propose(objective.point(x), radius).best
        c = (vectors.T @ slope).numpy()
        y, _ = within_ball(values.numpy(), c, radius)
        lowest = float(c @ y + 0.5 * y @ (values.numpy() * y))
        assert float(best.step.norm()) <= 1.1 * radius * (1 + 1e-12)
        assert best.predicted == pytest.approx(float(f(best.step)), rel=1e-8)
        assert best.predicted <= 0.75 * lowest


def test_newton_direct_of_a_chain_takes_one_factorisation_a_point():
    def f(x):
        return ((x[1:] - x[:-1]) ** 2 + 0.1 * torch.cosh(x[1:] - 1)).sum() + x[0] ** 2

    start = torch.zeros(2000, dtype=DOUBLE)
    result = minimize(f, start, "newton-direct")
    assert result.success
    assert result.nit <= 10
    assert result.nhev <= 40  # of the first radius and the certificate
    other = minimize(f, start, "trust-krylov")
    assert result.fun == pytest.approx(other.fun, rel=1e-13)


def test_newton_direct_without_an_exact_inverse_is_refused():
    start = torch.zeros(3, dtype=DOUBLE)
    with pytest.raises(OperatorError, match="sparse_hessian_operator"):
        minimize(rosenbrock, start, "newton-direct", curvature=hesse.hessian_operator)
    M = hesse.identity_operator(3, dtype=DOUBLE)
    with pytest.raises(ArgumentError, match="no preconditioner"):
        minimize(rosenbrock, start, "newton-direct", curvature=dense, preconditioner=M)


def test_a_direct_minimisation_goes_on_to_the_same_bits(tmp_path):
    start = torch.tensor([-1.2, 1.0] * 5, dtype=DOUBLE)
    options = {"curvature": dense, "max_iterations": 1000}
    whole = minimize(rosenbrock, start, "newton-direct", checkpoint=tmp_path / "whole", **options)
    for last in range(3, 200, 9):
        path = tmp_path / "parts"
        parts = minimize(
            rosenbrock, start, "newton-direct", checkpoint=path,
            callback=lambda state, last=last: state.number == last, **options,
        )  # fmt: skip
        if parts.status is not Status.STOPPED:
            break
    assert parts.success
    assert torch.equal(parts.x, whole.x)
    assert (parts.nit, parts.nhev, parts.history) == (whole.nit, whole.nhev, whole.history)


# -- Many variables: factors of an earlier point ---------------------------------------------------


@pytest.fixture
def factorisations(monkeypatch):
    """The matrices that are factorised."""
    seen = []

    def counted(matrix):
        seen.append(matrix)
        return factorise(matrix)

    factorise = sparse_operator.factorise
    monkeypatch.setattr(sparse_operator, "factorise", counted)
    return seen


def test_factors_serve_at_the_next_points_too(factorisations):
    """One factorisation at the start, and one that shows that the Hessian is definite."""
    start = torch.zeros(100**2, dtype=DOUBLE)
    result = minimize(bratu, start, "newton-direct")
    assert result.success
    assert 4 <= result.nit <= 10
    assert len(factorisations) == 2
    x = result.x.requires_grad_()
    (g,) = torch.autograd.grad(bratu(x), x)
    assert float(g.norm()) <= 1e-8 * result.history[0][1]


def test_factors_are_given_up_where_they_do_not_help(factorisations):
    """Those at the start, of a flat surface, would take more iterations after some steps."""
    f, start = FUNCTIONS["surface"](10_000)
    result = minimize(f, start, "newton-direct")
    assert result.success
    assert 3 <= len(factorisations) <= 4
    assert result.nit >= 2 * len(factorisations)
    assert result.fun == pytest.approx(2.068140202, rel=1e-9)  # by a factorisation at every point


@pytest.mark.slow
def test_earlier_factors_are_made_again_to_the_same_bits(tmp_path, factorisations):
    start = torch.zeros(100**2, dtype=DOUBLE)
    whole = minimize(bratu, start, "newton-direct", checkpoint=tmp_path / "whole")
    del factorisations[:]
    for last in range(1, 20):
        parts = minimize(
            bratu, start, "newton-direct", checkpoint=tmp_path / "parts",
            callback=lambda state, last=last: state.number == last,
        )  # fmt: skip
        if parts.status is not Status.STOPPED:
            break
    assert parts.success
    assert len(factorisations) > whole.nit  # in every part, of the matrix at the first point
    assert torch.equal(parts.x, whole.x)
    assert (parts.nit, parts.nhev, parts.history) == (whole.nit, whole.nhev, whole.history)


# -- The certificate by factors --------------------------------------------------------------------


def test_factors_show_curvature_that_products_miss():
    """At zero all curvature is above -2e-4, and ten products find what is below 0.01 of 4."""

    def f(x):
        return 0.5 * ((x[1:] - x[:-1]) ** 2).sum() + 0.25 * ((x**2 - 1e-4) ** 2).sum()

    start = torch.zeros(400, dtype=DOUBLE)
    result = minimize(f, start, "newton-direct")
    assert result.success
    assert result.fun == pytest.approx(0.0, abs=1e-10)
    expected = torch.linalg.eigvalsh(torch.func.hessian(f)(result.x))[0]
    assert result.min_curvature == pytest.approx(float(expected), rel=0.05)


def test_factors_show_curvature_between_that_of_others():
    """It is neither the least by much nor next to zero: a Lanczos process would take long."""
    d = torch.logspace(-6, 1, 400, dtype=DOUBLE)
    d[200] = -1e-4

    def f(x):
        return 0.5 * (d * x**2).sum() + 0.25 * (x[200:201] ** 4).sum()

    result = minimize(f, torch.zeros(400, dtype=DOUBLE), "newton-direct")
    assert result.success
    assert result.fun == pytest.approx(-0.25e-8, rel=1e-6)
    assert result.min_curvature == pytest.approx(1e-6, rel=0.2)


def test_a_hessian_that_is_zero_has_its_certificate():
    """There is no shift between zero and its largest curvature."""
    result = minimize(lambda x: (x**4).sum(), torch.zeros(20, dtype=DOUBLE), "newton-direct")
    assert result.success
    assert (result.fun, result.min_curvature) == (0.0, 0.0)


def test_entries_at_the_next_points_are_within_the_limit_of_products():
    weights = torch.linspace(-1.0, 1.0, 7, dtype=DOUBLE)

    def f(x):
        return (x.tanh().unfold(0, 7, 1) @ weights).pow(4).sum() + (x - 1).pow(4).sum()

    start = torch.zeros(40, dtype=DOUBLE)
    cost = hesse.sparse_hessian_operator(f, start).cost
    assert cost > 2
    for most in (cost + 2, 2 * cost, 3 * cost - 1):
        result = minimize(f, start, "newton-direct", max_products=most)
        assert result.status is Status.MAX_PRODUCTS
        assert cost <= result.nhev <= most


@pytest.mark.some_cases(5)
@pytest.mark.parametrize("scale", [1e-10, 1e-5, 1e5, 1e10])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_value_of_rounding_errors_does_not_end_the_run(scale, dtype):
    """Near the minimum the program of the entries has another value of f than f, by rounding."""
    result = minimize(lambda x: rosenbrock(x / scale), torch.zeros(5, dtype=dtype), "newton-direct")
    assert result.success
    accuracy = 1e-3 if dtype is torch.float32 else 1e-6
    torch.testing.assert_close(result.x / scale, torch.ones_like(result.x), rtol=0, atol=accuracy)
    S = hesse.sparse_hessian_operator(lambda x: rosenbrock(x / scale), torch.zeros_like(result.x))
    H = torch.autograd.functional.hessian(lambda x: rosenbrock(x / scale), result.x)
    torch.testing.assert_close(S.at(result.x).to_dense(), H, rtol=1e-4, atol=1e-4 / scale**2)
