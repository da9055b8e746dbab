# SPDX-License-Identifier: Apache-2.0
"""The methods of `minimize`, each against what it alone promises."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hesse
from hesse.errors import ArgumentError, HesseError, OperatorError
from hesse.krylov.preconditioners import jacobi
from hesse.optimize import LBFGS, Cubic, TrustKrylov, minimize
from hesse.testing import PeakMemory
from tests.smooth_functions import rosenbrock

DOUBLE = torch.float64
KRYLOV = ["trust-krylov", "cubic"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("method", KRYLOV)
def test_a_rejected_step_takes_no_product(method):
    """f is a quadratic with a wall that the model does not see: the first steps are too long."""

    def f(x):
        return torch.where(x.norm() > 1e-2, torch.inf, 0.5 * (d * x * x).sum() - x.sum())

    d = torch.linspace(1, 9, 40, dtype=DOUBLE)
    seen = []
    minimize(
        f, torch.zeros(40, dtype=DOUBLE), method, max_iterations=6, rtol=1e-8,
        callback=lambda state: seen.append((state.products, state.value)),
    )  # fmt: skip
    rejected = [k for k in range(1, len(seen)) if seen[k][1] == seen[k - 1][1]]
    again = [k for k in rejected if k - 1 in rejected]
    assert len(again) >= 2
    for k in again:
        assert seen[k][0] == seen[k - 1][0]


@pytest.mark.parametrize("method", KRYLOV)
def test_a_quadratic_is_solved_by_the_products_of_its_eigenvalues(method):
    d = torch.tensor([1.0, 4.0, 9.0], dtype=DOUBLE).repeat_interleave(20)
    result = minimize(
        lambda x: 0.5 * (d * x * x).sum() - x.sum(), torch.ones(60, dtype=DOUBLE), method
    )
    assert result.success
    torch.testing.assert_close(result.x, 1 / d, atol=1e-7, rtol=0)
    assert result.nhev <= 3 * result.nit + 12


@pytest.mark.parametrize("method", KRYLOV)
def test_scipy_finds_the_same_minimum(method):
    optimize = pytest.importorskip("scipy.optimize")
    start = torch.tensor([-1.2, 1.0, 0.5, 2.0], dtype=DOUBLE)

    def f(x):
        return rosenbrock(x) + torch.cosh(x).sum()

    result = minimize(f, start, method)
    gradient, hessian = torch.func.grad(f), torch.func.hessian(f)
    theirs = optimize.minimize(
        lambda x: float(f(torch.from_numpy(x))), start.numpy(), method="trust-exact",
        jac=lambda x: gradient(torch.from_numpy(x)).numpy(),
        hess=lambda x: hessian(torch.from_numpy(x)).numpy(), options={"gtol": 1e-10},
    )  # fmt: skip
    assert result.success
    assert result.fun == pytest.approx(theirs.fun, rel=1e-13)
    torch.testing.assert_close(result.x, torch.from_numpy(theirs.x), atol=1e-7, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("method", KRYLOV)
def test_a_preconditioner_saves_products(method):
    d = torch.logspace(0, 6, 400, dtype=DOUBLE)

    def f(x):
        return 0.5 * (d * x * x).sum() + torch.cos(x - 1).sum() + 0.1 * x.sum() ** 2

    start = torch.full((400,), 2.0, dtype=DOUBLE)
    plain = minimize(f, start, method)
    M = jacobi(hesse.hessian_operator(f, start), probes=2, generator=seeded())
    better = minimize(f, start, method, preconditioner=M)
    assert plain.success
    assert better.success
    assert better.fun == pytest.approx(plain.fun, rel=1e-12)
    assert better.nhev < 0.5 * plain.nhev


@pytest.mark.parametrize("method", [*KRYLOV, "lbfgs"])
def test_a_preconditioner_may_be_a_matrix(method):
    start, inverse = (
        torch.ones(3, dtype=DOUBLE),
        torch.diag(torch.tensor([1.0, 0.1, 1e-3]).double()),
    )

    def f(x):
        return (torch.cosh(x) / inverse.diag()).sum()

    ours = minimize(f, start, method, preconditioner=inverse)
    expected = minimize(f, start, method, preconditioner=hesse.dense_operator(inverse))
    assert torch.equal(ours.x, expected.x)
    for wrong in ("kfac", 3, inverse[:2, :2], inverse.float()):
        with pytest.raises(HesseError):
            minimize(f, start, method, preconditioner=wrong)


@pytest.mark.parametrize("method", KRYLOV)
def test_a_preconditioner_that_is_not_positive_definite_is_refused(method):
    M = -1.0 * hesse.identity_operator(2, dtype=DOUBLE)
    with pytest.raises(OperatorError, match="positive definite preconditioner"):
        minimize(rosenbrock, torch.zeros(2, dtype=DOUBLE), method, preconditioner=M)


@pytest.mark.parametrize("method", KRYLOV)
def test_a_singular_hessian_with_a_line_of_minima(method):
    result = minimize(
        lambda x: (x[0] ** 2 + x[1] ** 2 - 1) ** 2 + (x[2] - x[3]) ** 2,
        torch.tensor([2.0, 1.0, 3.0, -1.0], dtype=DOUBLE), method,
    )  # fmt: skip
    assert result.success
    assert result.fun == pytest.approx(0.0, abs=1e-14)


@pytest.mark.parametrize("method", [TrustKrylov(), Cubic()])
def test_a_method_is_an_object_with_options(method):
    start = torch.tensor([-1.2, 1.0], dtype=DOUBLE)
    assert minimize(rosenbrock, start, method).nhev == minimize(rosenbrock, start, method.name).nhev
    seen = []
    few = type(method)(max_inner_iterations=3)
    minimize(
        rosenbrock, start.repeat(5), few, max_iterations=30, rtol=1e-8,
        callback=lambda state: seen.append(state.products),
    )  # fmt: skip
    assert max(b - a for a, b in pairwise(seen)) == 3
    with pytest.raises(ArgumentError, match="max_inner_iterations"):
        type(method)(max_inner_iterations=0)
    with pytest.raises(ArgumentError, match="instance of"):
        minimize(rosenbrock, start, type(method))


@pytest.mark.slow
@pytest.mark.parametrize("method", KRYLOV)
def test_the_vectors_are_bounded(method, monkeypatch):
    """A basis without room: trust-krylov goes on with CG, cubic takes the best step on it."""
    from hesse.optimize import krylov_descent

    n = 100_000
    monkeypatch.setattr(krylov_descent, "_ENTRIES", 0)
    d = torch.logspace(0, 3, n, dtype=DOUBLE)

    def f(x):
        return 0.5 * (d * x * x).sum() - x.sum()

    with PeakMemory() as memory:
        result = minimize(f, torch.zeros(n, dtype=DOUBLE), method, max_products=400)
    assert memory.peak <= 60 * 8 * n
    if method == "trust-krylov":
        assert float(result.jac.norm()) < 1e-3 * n**0.5


# -- lbfgs -----------------------------------------------------------------------------------------


def test_lbfgs_takes_no_products_before_the_certificate():
    seen = []
    result = minimize(
        rosenbrock, torch.tensor([-1.2, 1.0] * 10, dtype=DOUBLE), "lbfgs", rtol=1e-8,
        callback=lambda state: seen.append(state.products),
    )  # fmt: skip
    assert result.success
    assert seen[-2] == 0
    assert result.nhev <= 21  # the certificate: ten, and ten for the decrease of the model
    assert result.njev <= 2 * result.nit


def test_lbfgs_steps_are_those_of_dense_bfgs():
    """With room for all pairs M is that of BFGS, updated from a multiple of the identity."""
    from hesse.optimize.point import Objective
    from hesse.optimize.quasi_newton import QuasiNewton

    f, points = torch.cosh, seeded()
    descent = QuasiNewton(memory=10)
    x = torch.randn(5, dtype=DOUBLE, generator=points)
    objective = Objective(hesse.hessian_operator(lambda x: f(x).sum() + x.sum() ** 2, x))
    pairs, last = [], None
    for _ in range(4):
        point = objective.point(x)
        step = descent.propose(point, 0.0).best.step
        if last is not None:
            pairs.append((point.x - last.x, point.gradient - last.gradient))
            s, y = pairs[-1]
            M = (s @ y) / (y @ y) * torch.eye(5, dtype=DOUBLE)
            for s, y in pairs:
                V = torch.eye(5, dtype=DOUBLE) - torch.outer(s, y) / (s @ y)
                M = V @ M @ V.T + torch.outer(s, s) / (s @ y)
            torch.testing.assert_close(step, -M @ point.gradient)
        last, x = point, x + 0.3 * step


@settings(max_examples=40, deadline=None)
@given(st.floats(0.1, 30.0), st.floats(-3.0, 3.0), st.floats(1e-3, 1e3))
def test_the_accepted_length_satisfies_the_strong_wolfe_conditions(a, b, scale):
    from hesse.optimize.point import Objective
    from hesse.optimize.proposal import Candidate, Proposal
    from hesse.optimize.wolfe import StrongWolfeSearch

    def f(x):
        return (a * x**4 / 4 + b * x**2 + torch.cos(3 * x) - x).sum()

    x = torch.zeros(1, dtype=DOUBLE)
    objective = Objective(hesse.hessian_operator(f, x))
    point = objective.point(x)
    step = scale * torch.ones(1, dtype=DOUBLE)
    found = StrongWolfeSearch().judge(objective, point, Proposal(Candidate(step, -1.0)))
    assert found is not None
    slope = point.gradient @ step
    assert found.value <= point.value + 1e-4 * float(point.gradient @ (found.x - x)) + 1e-12
    assert abs(found.gradient @ step) <= 0.9 * abs(slope)


def test_lbfgs_takes_options():
    start = torch.tensor([-1.2, 1.0] * 5, dtype=DOUBLE)
    assert (
        minimize(rosenbrock, start, LBFGS(memory=2)).nit > minimize(rosenbrock, start, LBFGS()).nit
    )
    with pytest.raises(ArgumentError, match="memory"):
        LBFGS(memory=0)


# -- newton-minres ---------------------------------------------------------------------------------


def test_a_singular_system_without_a_solution_is_a_step_of_least_residual():
    """f has a flat direction along which it falls: g is not in the range of H."""

    def f(x):  # minimal at x = (1, log 2), but the Hessian at the start is diag(2, 0)
        return (x[0] - 1) ** 2 + torch.where(x[1] < 0, -x[1], torch.cosh(x[1] - 1)).sum()

    result = minimize(f, torch.tensor([5.0, -3.0], dtype=DOUBLE), "newton-minres")
    assert result.success
    torch.testing.assert_close(result.x, torch.ones(2, dtype=DOUBLE), atol=1e-7, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_a_truncated_minres_descends_and_knows_the_curvature(seed):
    """Either kind of step: g'p < 0; and the curvature along the direction is that of a product."""
    generator = seeded(seed)
    A = torch.randn(30, 30, dtype=DOUBLE, generator=generator)
    A, g = A + A.T, torch.randn(30, dtype=DOUBLE, generator=generator)
    for shift in (0.0, 12.0, 20.0):
        H = A + shift * torch.eye(30, dtype=DOUBLE)
        solution = hesse.solve(H, -g, hesse.MINRES(truncated=True), rtol=0.1)
        if solution.direction is None:
            assert float(torch.linalg.eigvalsh(H)[0]) > 0 or solution.residual_norm < 0.1 * g.norm()
            assert float(g @ solution.x) < 0
        else:
            p = solution.direction
            assert float(g @ p) == pytest.approx(-float(p @ p), rel=1e-6)
            assert solution.curvature == pytest.approx(float(p @ H @ p), rel=1e-6, abs=1e-9)
            assert solution.curvature <= 0.0
            assert float(torch.linalg.eigvalsh(H)[0]) <= 0.0


def test_minres_leaves_a_rank_deficient_valley_at_superlinear_speed():
    """A least-squares problem with more unknowns than equations: H is singular everywhere."""
    B = torch.randn(5, 20, dtype=DOUBLE, generator=seeded())
    result = minimize(
        lambda x: (torch.tanh(B @ x / 5) - 0.1).square().sum(),
        torch.ones(20, dtype=DOUBLE) / 7, "newton-minres",
    )  # fmt: skip
    assert result.success
    assert result.fun < 1e-15
    assert result.nit <= 15


@pytest.mark.some_cases(13)
@pytest.mark.parametrize("method", ["auto", "lbfgs", "newton-cg", "trust-krylov", "cubic"])
@pytest.mark.parametrize(("dtype", "unit"), [
    (torch.float64, 1e-150), (torch.float64, 1e-60), (torch.float64, 1e140),
    (torch.float32, 1e-25), (torch.float32, 1e25),
])  # fmt: skip
def test_the_unit_of_f_does_not_matter(method, dtype, unit):
    """The first step of L-BFGS is -g, which is short by any factor."""

    def f(x):
        return unit * (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    result = hesse.minimize(f, torch.zeros(5, dtype=dtype), method)
    assert result.success, result.message
    torch.testing.assert_close(result.x, torch.ones(5, dtype=dtype), rtol=0, atol=1e-3)
