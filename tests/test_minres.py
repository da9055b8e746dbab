"""MINRES: definite, indefinite and singular systems, with the counts and what it says of them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hesse.checkpoint import Checkpoint
from hesse.errors import OperatorError, Status
from hesse.krylov import MINRES, solve
from hesse.krylov.system import System
from hesse.operators import dense_operator, diagonal_operator, function_operator
from hesse.progress import Run
from hesse.testing import CountingOperator, PeakMemory, symmetric_matrix

DOUBLE = torch.float64


def minres(system):
    return MINRES().solve_system(system)


def vector(n, seed=1):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def indefinite(n=30):
    return symmetric_matrix(
        torch.cat([torch.linspace(1, 10, n - n // 3), -torch.linspace(1, 4, n // 3)])
    )


def test_one_product_an_iteration_and_one_to_verify():
    A = CountingOperator(dense_operator(indefinite()))
    solution = minres(System(A, vector(30), rtol=1e-8))
    assert solution.converged
    assert A.products == solution.products == solution.iterations + 1


def test_an_exact_start_takes_one_product_and_zero_none():
    M, b = indefinite(3), vector(3)
    A = CountingOperator(dense_operator(M))
    solution = minres(System(A, b, torch.linalg.solve(M, b)))
    assert (solution.iterations, A.products, solution.converged) == (0, 1, True)
    A.products = 0
    solution = minres(System(A, torch.zeros(3, dtype=DOUBLE), vector(3)))
    assert (A.products, solution.converged, bool(solution.x.any())) == (0, True, False)


def test_as_many_iterations_as_distinct_eigenvalues():
    values = [1.0] * 10 + [-5.0] * 10 + [9.0] * 10
    assert (
        minres(System(dense_operator(symmetric_matrix(values)), vector(30), rtol=1e-10)).iterations
        == 3
    )
    assert minres(System(diagonal_operator(torch.ones(5)), torch.ones(5))).iterations == 1


def test_one_equation():
    solution = minres(System(diagonal_operator(torch.tensor([-4.0])), torch.tensor([2.0])))
    assert (float(solution.x), solution.iterations) == (-0.5, 1)


@settings(max_examples=30)
@given(st.integers(1, 30), st.floats(0, 3), st.integers(0, 10**6), st.booleans())
def test_agrees_with_a_dense_solve(n, log_condition, seed, warm):
    signs = torch.where(vector(n, seed) < 0, -1.0, 1.0)
    M = symmetric_matrix(torch.logspace(0, log_condition, n) * signs, seed)
    b, x0 = vector(n, seed + 1), vector(n, seed + 2) if warm else None
    solution = minres(System(dense_operator(M), b, x0, rtol=1e-9, max_iterations=100 * n))
    assert solution.converged
    # |error| <= |residual| / smallest magnitude of an eigenvalue, which is 1
    assert (solution.x - torch.linalg.solve(M, b)).norm() <= 1.01e-9 * b.norm()
    assert solution.residual_norm == pytest.approx(float((b - M @ solution.x).norm()), abs=1e-12)
    model = float(0.5 * solution.x @ M @ solution.x - b @ solution.x)
    assert solution.model_value == pytest.approx(model, rel=1e-7, abs=1e-7)


def test_the_residuals_are_the_least_of_the_krylov_space():
    M, b = indefinite(12), vector(12)
    solution = minres(System(dense_operator(M), b, rtol=1e-12))
    for k in range(1, 8):
        powers = [b]
        for _ in range(k - 1):
            powers.append(M @ powers[-1] / powers[-1].norm())
        K, _ = torch.linalg.qr(torch.stack(powers, dim=1))
        y = torch.linalg.lstsq(M @ K, b[:, None]).solution
        assert solution.history[k] == pytest.approx(float((b - M @ K @ y[:, 0]).norm()), rel=1e-8)


def test_has_the_iterates_of_scipy():
    linalg = pytest.importorskip("scipy.sparse.linalg")
    M, b = indefinite(60), vector(60)
    seen = []
    linalg.minres(M.numpy(), b.numpy(), rtol=1e-13, callback=lambda x: seen.append(x.copy()))
    solution = minres(System(dense_operator(M), b, rtol=1e-9))
    theirs = torch.from_numpy(seen[solution.iterations - 1])
    torch.testing.assert_close(solution.x, theirs, rtol=0.0, atol=1e-8)


def test_preconditioned_the_inverse_takes_one_iteration_and_jacobi_helps():
    M = symmetric_matrix(torch.logspace(0, 4, 30))
    inverse = torch.linalg.inv(M)
    M_inverse = dense_operator((inverse + inverse.T) / 2)
    b = vector(30)
    assert minres(System(dense_operator(M), b, preconditioner=M_inverse)).iterations <= 2
    scale = torch.logspace(0, 2, 30, dtype=DOUBLE)
    M = scale[:, None] * indefinite() * scale
    jacobi = diagonal_operator(scale**-2)
    plain = minres(System(dense_operator(M), b, rtol=1e-8))
    better = minres(System(dense_operator(M), b, preconditioner=jacobi, rtol=1e-8))
    assert better.converged
    assert better.iterations < 0.5 * plain.iterations
    assert (b - M @ better.x).norm() <= 1e-8 * b.norm()


# What it says of curvature


@pytest.mark.parametrize("preconditioned", [False, True])
def test_a_direction_of_negative_curvature_costs_no_product(preconditioned):
    M = indefinite()
    A = CountingOperator(dense_operator(M))
    jacobi = diagonal_operator(torch.linspace(1, 2, 30, dtype=DOUBLE)) if preconditioned else None
    solution = minres(System(A, vector(30), preconditioner=jacobi, rtol=1e-8))
    p = solution.direction
    assert float(p @ M @ p) <= 1e-15 * float(p.norm() * (M @ p).norm())
    assert solution.converged
    assert A.products == solution.iterations + 1


def test_the_first_residual_of_negative_curvature_is_the_direction():
    b = torch.tensor([1.0, 2.0], dtype=DOUBLE)
    solution = minres(System(diagonal_operator(torch.tensor([1.0, -1.0], dtype=DOUBLE)), b))
    assert torch.equal(solution.direction, b)


@pytest.mark.parametrize("condition", [0, 3, 6])
def test_a_positive_definite_matrix_has_no_such_direction(condition):
    M = symmetric_matrix(torch.logspace(0, condition, 40))
    assert minres(System(dense_operator(M), vector(40), rtol=1e-8)).direction is None


# Singular systems


def test_a_consistent_singular_system_gives_the_solution_of_least_norm():
    M = symmetric_matrix([0.0, 0.0, 1.0, -2.0, 3.0])
    b = M @ vector(5)
    solution = minres(System(dense_operator(M), b, rtol=1e-10))
    assert solution.converged
    torch.testing.assert_close(solution.x, torch.linalg.pinv(M) @ b, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize(("dtype", "error"), [(DOUBLE, 1e-5), (torch.float32, 1e-2)])
@pytest.mark.parametrize("warm", [False, True])
def test_an_inconsistent_system_gives_the_nearest_minimiser(dtype, error, warm):
    values = torch.cat([torch.zeros(5), torch.linspace(1, 10, 20), -torch.linspace(1, 3, 10)])
    M, b = symmetric_matrix(values), vector(35)
    x0 = vector(35, 2) if warm else torch.zeros(35, dtype=DOUBLE)
    A = CountingOperator(dense_operator(M.to(dtype)))
    solution = minres(System(A, b.to(dtype), x0.to(dtype), rtol=1e-6))
    nearest = x0 + torch.linalg.pinv(M, rtol=1e-8) @ (b - M @ x0)
    assert (solution.status, solution.converged) == (Status.LEAST_SQUARES, False)
    assert (solution.x - nearest).norm() <= error * nearest.norm()
    # the last step is not taken, its product is; two verify
    assert A.products == solution.products == solution.iterations + 3 + warm
    residual = float((b - M @ solution.x.double()).norm())
    assert solution.residual_norm == pytest.approx(residual, rel=1e-5)


@pytest.mark.parametrize("zeros", [10, 50])
def test_no_step_leads_along_the_null_space_where_rounding_hides_the_minimiser(zeros):
    """|A r| stops falling just above the level at which it vanishes, for one start in eight."""
    values = torch.cat([torch.zeros(zeros), torch.linspace(1.0, 30.0, 150)])
    M = symmetric_matrix(values)
    inverse = torch.linalg.pinv(M, rtol=1e-10)
    for seed in range(60):
        b = vector(len(values), seed)
        solution = minres(System(dense_operator(M), b, rtol=1e-8))
        nearest = inverse @ b
        assert solution.status is Status.LEAST_SQUARES
        assert (solution.x - nearest).norm() <= 1e-4 * nearest.norm()


def test_x_is_not_shortened_where_that_makes_the_residual_larger():
    """A condition of 1e12 that is met at last: a look too early spoiled x by ten digits."""
    g = torch.Generator().manual_seed(0)
    d = torch.cat([torch.rand(45, generator=g, dtype=DOUBLE) + 0.5, torch.logspace(-13, -12, 5)])
    d = d * torch.randn(50, generator=g, dtype=DOUBLE).sign()
    for seed in range(10):
        b = vector(50, seed)
        solution = minres(System(diagonal_operator(d), b, rtol=1e-8, max_iterations=3000))
        assert solution.residual_norm <= b.norm()


def test_no_product_sees_a_right_hand_side_in_the_null_space():
    solution = minres(System(diagonal_operator(torch.tensor([0.0, 1.0])), torch.tensor([1.0, 0.0])))
    assert (solution.status, solution.iterations) == (Status.LEAST_SQUARES, 0)
    assert not solution.x.any()


def test_with_a_preconditioner_another_norm_is_least_and_no_minimiser_is_claimed():
    M = symmetric_matrix([0.0, 0.0, 1.0, -2.0, 3.0])
    jacobi = diagonal_operator(torch.logspace(0, 2, 5, dtype=DOUBLE))
    for scale in (1.0, 1e8):
        solution = minres(System(dense_operator(M), vector(5), preconditioner=scale * jacobi))
        assert solution.status is Status.STAGNATED


# What it says of the end


@pytest.mark.fast_cases(30)
@pytest.mark.parametrize("seed", range(100))
def test_on_indefinite_matrices_never_a_wrong_converged(seed):
    M, b = symmetric_matrix(vector(12, seed), seed), vector(12, seed + 100)
    solution = minres(System(dense_operator(M), b, rtol=1e-8, max_iterations=40))
    if solution.converged:
        assert (b - M @ solution.x).norm() <= 1e-8 * b.norm()
    if solution.direction is not None:
        p = solution.direction
        assert float(p @ M @ p) <= 1e-14 * float(p.norm() * (M @ p).norm())


def test_a_condition_of_1e12_is_never_falsely_solved():
    M, b = symmetric_matrix(torch.logspace(0, 12, 60)), vector(60)
    solution = minres(System(dense_operator(M), b, rtol=1e-8, max_iterations=1000))
    assert not solution.converged
    assert solution.residual_norm > 1e-8 * b.norm()


def test_single_precision_stagnates_and_says_so():
    M = symmetric_matrix(torch.logspace(0, 2, 60)).float()
    system = System(dense_operator(M), vector(60).float(), rtol=1e-9, max_iterations=10**4)
    assert minres(system).status is Status.STAGNATED


@pytest.mark.slow
@pytest.mark.parametrize("condition", [1e5, 1e6, 1e7])
def test_steps_beyond_what_rounding_allows_do_not_lead_away(condition):
    """In float32 the recurrence loses the residual; |b - A x| had grown to 72 |b|."""
    A = symmetric_matrix(torch.logspace(0, math.log10(condition), 80, dtype=DOUBLE)).float()
    b = torch.randn(80, generator=torch.Generator().manual_seed(0))
    operator = function_operator(lambda v: A @ v, 80, symmetric=True)
    norms = []
    for method, most in [(MINRES(), 60), (MINRES(), None), ("auto", None)]:
        solution = solve(operator, b, method, max_products=most)
        norms.append(float((b - A @ solution.x).norm() / b.norm()))
        assert solution.residual_norm == pytest.approx(norms[-1] * float(b.norm()), rel=1e-3)
    assert norms[1] <= norms[0]
    assert norms[2] <= 1.01 * norms[0]
    by_cg = solve(operator, b, "cg").residual_norm / float(b.norm())
    assert norms[2] <= 1.01 * by_cg


def test_a_product_that_is_nan_returns_the_last_finite_iterate():
    calls = []

    def product(v):
        calls.append(1)
        return v * torch.tensor([1.0, -2.0, 3.0]) * (math.nan if len(calls) == 3 else 1.0)

    solution = minres(System(function_operator(product, 3, symmetric=True), torch.ones(3)))
    assert (solution.status, solution.iterations) == (Status.NOT_FINITE, 2)
    assert torch.isfinite(solution.x).all()


def test_a_product_that_overflows_returns_the_last_finite_iterate():
    d = torch.tensor([1e200, -1e200], dtype=DOUBLE)
    A = function_operator(lambda v: d * v, 2, symmetric=True, dtype=DOUBLE)
    solution = minres(System(A, torch.ones(2, dtype=DOUBLE)))
    assert (solution.status, solution.iterations) == (Status.NOT_FINITE, 0)


def long_system(**limits):
    run = Run("minres", **limits)
    return System(
        dense_operator(symmetric_matrix(torch.logspace(0, 4, 60))), vector(60), rtol=1e-8, run=run
    )


def interrupt(state):
    if state.iteration == 4:
        raise KeyboardInterrupt


def test_it_can_be_stopped_in_every_way():
    for limits, status in [
        ({"max_products": 5}, Status.MAX_PRODUCTS),
        ({"max_seconds": 1e-9}, Status.MAX_SECONDS),
        ({"callback": lambda state: state.iteration == 4}, Status.STOPPED),
        ({"callback": interrupt}, Status.INTERRUPTED),
    ]:
        solution = minres(long_system(**limits))
        assert (solution.status, solution.converged) == (status, False)
        assert solution.iterations == (1 if status is Status.MAX_SECONDS else 4)


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr("hesse.checkpoint._PAUSE", 0)

    def kill(state):
        if state.iteration == 50:
            raise RuntimeError("killed")

    system = long_system()
    whole = minres(system)
    system = long_system(callback=kill)
    system.checkpoint = Checkpoint(tmp_path / "run", system.A, method="minres")
    with pytest.raises(RuntimeError, match="killed"):
        minres(system)
    seen = []
    again = long_system(callback=lambda state: seen.append(state.iteration))
    again.checkpoint = system.checkpoint
    resumed = minres(again)
    assert seen[0] == 50  # 49 steps were saved
    assert torch.equal(resumed.x, whole.x)
    assert (resumed.products, resumed.history) == (whole.products, whole.history)


@pytest.mark.parametrize("stop", [60, 120, 170])
def test_a_run_that_has_lost_its_residual_goes_on_to_the_same_bits(stop, tmp_path):
    A = symmetric_matrix(torch.logspace(0, 6, 30, dtype=DOUBLE)).float()
    operator = function_operator(lambda v: A @ v, 30, symmetric=True)
    whole, file = solve(operator, torch.ones(30), "minres"), tmp_path / "run"
    solve(operator, torch.ones(30), "minres", max_products=stop, checkpoint=file)
    resumed = solve(operator, torch.ones(30), "minres", checkpoint=file)
    assert torch.equal(resumed.x, whole.x)
    assert whole.iterations > 170


@pytest.mark.slow
def test_memory_is_nine_vectors_one_for_the_direction_and_two_beyond_n_steps():
    n = 2000
    d = torch.linspace(1, 2, n, dtype=DOUBLE)
    signs = torch.ones(n, dtype=DOUBLE)
    signs[::2] = -1.0
    for diagonal, vectors, is_long in [(d, 9, False), (signs * d, 10, False), (d - 1.5, 12, True)]:
        system = System(diagonal_operator(diagonal), torch.ones(n, dtype=DOUBLE), rtol=1e-4)
        with PeakMemory() as memory:
            solution = minres(system)
        assert solution.converged
        assert (solution.iterations > n) is is_long
        assert memory.peak == pytest.approx(vectors * 8 * n, rel=0.01)


def test_what_it_cannot_solve_is_refused():
    with pytest.raises(OperatorError, match="symmetric"):
        minres(System(dense_operator(torch.tensor([[1.0, 2.0], [0.0, 1.0]])), torch.ones(2)))
    ones = diagonal_operator(torch.ones(2))
    with pytest.raises(OperatorError, match="positive definite"):
        minres(System(ones, torch.ones(2), preconditioner=-1.0 * ones))
