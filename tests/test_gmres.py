"""GMRES: non-symmetric systems, restarts and breakdown, with the counts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hesse.checkpoint import Checkpoint
from hesse.errors import ArgumentError, ShapeError, Status
from hesse.krylov import GMRES
from hesse.krylov.system import System
from hesse.operators import dense_operator, diagonal_operator, function_operator
from hesse.progress import Run
from hesse.testing import CountingOperator, PeakMemory

DOUBLE = torch.float64


def gmres(system, restart=30):
    return GMRES(restart).solve_system(system)


def matrix(n, seed=0, spread=0.5):
    """A non-symmetric matrix with eigenvalues about 1: the identity and a little noise."""
    noise = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    return torch.eye(n, dtype=DOUBLE) + spread * noise / math.sqrt(n)


def vector(n, seed=1):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def test_one_product_an_iteration_one_a_restart_and_one_to_verify():
    for restart, restarts in [(60, 0), (5, 3)]:
        A = CountingOperator(dense_operator(matrix(60)))
        solution = gmres(System(A, vector(60), rtol=1e-6), restart)
        assert solution.converged
        assert (solution.iterations - 1) // restart == restarts
        assert A.products == solution.products == solution.iterations + restarts + 1


def test_an_exact_start_takes_one_product_and_zero_none():
    M, b = matrix(3), vector(3)
    A = CountingOperator(dense_operator(M))
    solution = gmres(System(A, b, torch.linalg.solve(M, b)))
    assert (solution.iterations, A.products, solution.converged) == (0, 1, True)
    A.products = 0
    solution = gmres(System(A, torch.zeros(3, dtype=DOUBLE), vector(3)))
    assert (A.products, solution.converged, bool(solution.x.any())) == (0, True, False)


def test_as_many_iterations_as_distinct_eigenvalues():
    S = matrix(30, seed=3)
    d = torch.tensor([1.0] * 10 + [-5.0] * 10 + [9.0] * 10, dtype=DOUBLE)
    M = S @ torch.diag(d) @ torch.linalg.inv(S)
    assert gmres(System(dense_operator(M), vector(30), rtol=1e-10)).iterations == 3
    assert gmres(System(diagonal_operator(torch.ones(5)), torch.ones(5))).iterations == 1


def test_one_equation():
    solution = gmres(System(dense_operator(torch.tensor([[-4.0]])), torch.tensor([2.0])))
    assert (float(solution.x), solution.iterations) == (-0.5, 1)


@settings(max_examples=30)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 10**6), st.booleans())
def test_agrees_with_a_dense_solve(n, restart, seed, warm):
    M = matrix(n, seed, spread=0.2)
    b, x0 = vector(n, seed + 1), vector(n, seed + 2) if warm else None
    solution = gmres(System(dense_operator(M), b, x0, rtol=1e-10, max_iterations=1000), restart)
    exact = torch.linalg.solve(M, b)
    inverse = float(torch.linalg.matrix_norm(torch.linalg.inv(M), 2))
    assert solution.converged
    assert (solution.x - exact).norm() <= 1.01e-10 * inverse * b.norm()
    assert solution.residual_norm == pytest.approx(float((b - M @ solution.x).norm()), abs=1e-12)


def test_the_residuals_are_the_least_of_the_krylov_space():
    M, b = matrix(12), vector(12)
    solution = gmres(System(dense_operator(M), b, rtol=1e-12))
    for k in range(1, 8):
        powers = [b]
        for _ in range(k - 1):
            powers.append(M @ powers[-1] / powers[-1].norm())
        K, _ = torch.linalg.qr(torch.stack(powers, dim=1))
        y = torch.linalg.lstsq(M @ K, b[:, None]).solution
        assert solution.history[k] == pytest.approx(float((b - M @ K @ y[:, 0]).norm()), rel=1e-8)


def test_has_the_iterates_of_scipy():
    linalg = pytest.importorskip("scipy.sparse.linalg")
    M, b = matrix(40), vector(40)
    theirs, _ = linalg.gmres(M.numpy(), b.numpy(), rtol=1e-14, restart=5, maxiter=2)
    solution = gmres(System(dense_operator(M), b, rtol=1e-14, max_iterations=10), restart=5)
    torch.testing.assert_close(solution.x, torch.from_numpy(theirs), rtol=0.0, atol=1e-12)


def test_the_preconditioner_stands_on_the_right_and_need_not_be_symmetric():
    M, b = matrix(30, spread=3.0), vector(30)
    inverse = dense_operator(torch.linalg.inv(M))
    solution = gmres(System(dense_operator(M), b, preconditioner=inverse, rtol=1e-9))
    assert (solution.iterations, solution.converged) == (1, True)
    rough = dense_operator(torch.linalg.inv(M) + 0.01 * matrix(30, 5))
    solution = gmres(System(dense_operator(M), b, preconditioner=rough, rtol=1e-9))
    assert solution.iterations < 30
    # the residual of the recurrence is the true one, not a preconditioned one
    assert solution.history[-1] == pytest.approx(solution.residual_norm, rel=1e-4)


# Breakdown


def shift(n):
    """e_i -> e_{i+1}, cyclically: full GMRES gains nothing before step n."""
    return torch.roll(torch.eye(n, dtype=DOUBLE), 1, 0)


def test_a_cycle_that_gains_nothing_is_the_last():
    b = torch.eye(10, dtype=DOUBLE)[0]
    A = CountingOperator(dense_operator(shift(10)))
    solution = gmres(System(A, b), restart=5)
    assert (solution.status, solution.iterations, A.products) == (Status.STAGNATED, 5, 6)
    solution = gmres(System(A, b), restart=10)
    assert (solution.converged, solution.iterations) == (True, 10)


def test_a_complete_space_with_the_solution_is_a_lucky_breakdown():
    M = torch.block_diag(matrix(3), matrix(5, 2))
    b = torch.cat([vector(3), torch.zeros(5, dtype=DOUBLE)])
    solution = gmres(System(dense_operator(M), b, rtol=1e-12))
    assert (solution.converged, solution.iterations) == (True, 3)


def test_singular_systems():
    M = matrix(8)
    M[:, 0] = M[:, 1]
    assert gmres(System(dense_operator(M), M @ vector(8), rtol=1e-8)).converged
    solution = gmres(System(dense_operator(M), vector(8), rtol=1e-8))
    assert (solution.status, solution.converged) == (Status.STAGNATED, False)
    nilpotent = dense_operator(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    solution = gmres(System(nilpotent, torch.tensor([1.0, 0.0])))
    assert (solution.status, solution.iterations) == (Status.STAGNATED, 0)
    assert torch.isfinite(solution.x).all()


@pytest.mark.fast_cases(30)
@pytest.mark.parametrize("seed", range(100))
def test_on_random_matrices_never_a_wrong_converged(seed):
    M, b = matrix(12, seed, spread=5.0), vector(12, seed + 100)
    solution = gmres(System(dense_operator(M), b, rtol=1e-8, max_iterations=40), restart=4)
    if solution.converged:
        assert (b - M @ solution.x).norm() <= 1e-8 * b.norm()
    else:
        assert solution.status in (Status.MAX_ITERATIONS, Status.STAGNATED)


def test_a_condition_of_1e12_is_never_falsely_solved():
    M, b = torch.diag(torch.logspace(0, 12, 40, dtype=DOUBLE)) @ matrix(40), vector(40)
    solution = gmres(System(dense_operator(M), b, rtol=1e-8), restart=10)
    true = float((b - M @ solution.x).norm())
    assert solution.converged == (true <= 1e-8 * float(b.norm()))


def test_single_precision_stagnates_and_says_so():
    M = matrix(60, spread=0.2).float()
    system = System(dense_operator(M), vector(60).float(), rtol=1e-9, max_iterations=10**4)
    assert gmres(system, 10).status is Status.STAGNATED


def test_a_product_that_is_nan_returns_the_last_finite_iterate():
    calls = []

    def product(v):
        calls.append(1)
        return v * torch.tensor([1.0, 2.0, 3.0]) * (math.nan if len(calls) == 4 else 1.0)

    solution = gmres(System(function_operator(product, 3), torch.ones(3)))
    assert (solution.status, solution.iterations) == (Status.NOT_FINITE, 2)
    residual = torch.ones(3) - torch.tensor([1.0, 2.0, 3.0]) * solution.x
    assert float(residual.norm()) == pytest.approx(solution.residual_norm, rel=1e-4)


def long_system(**limits):
    run = Run("gmres", **limits)
    return System(dense_operator(matrix(60, spread=0.8)), vector(60), rtol=1e-9, run=run)


def interrupt(state):
    if state.iteration == 8:
        raise KeyboardInterrupt


def test_it_can_be_stopped_in_every_way_with_the_best_x_so_far():
    for limits, status, iterations in [
        ({"max_products": 10}, Status.MAX_PRODUCTS, 8),
        ({"max_seconds": 1e-9}, Status.MAX_SECONDS, 1),
        ({"callback": lambda state: state.iteration == 8}, Status.STOPPED, 8),
        ({"callback": interrupt}, Status.INTERRUPTED, 8),
    ]:
        system = long_system(**limits)
        solution = gmres(system, 5)
        assert (solution.status, solution.converged) == (status, False)
        assert solution.iterations == iterations
        true = float((system.b - system.A @ solution.x).norm())
        assert solution.residual_norm == pytest.approx(true, rel=1e-10)


@pytest.mark.parametrize("step", [15, 18])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, monkeypatch, step):
    monkeypatch.setattr("hesse.checkpoint._PAUSE", 0)

    def kill(state):
        if state.iteration == step + 1:
            raise RuntimeError("killed")

    whole = gmres(long_system(), 5)
    system = long_system(callback=kill)
    system.checkpoint = Checkpoint(tmp_path / "run", system.A, method="gmres")
    with pytest.raises(RuntimeError, match="killed"):
        gmres(system, 5)
    seen = []
    again = long_system(callback=lambda state: seen.append(state.iteration))
    again.checkpoint = system.checkpoint
    resumed = gmres(again, 5)
    assert seen[0] == step + 1
    assert torch.equal(resumed.x, whole.x)
    assert (resumed.products, resumed.history) == (whole.products, whole.history)


def test_memory_is_the_basis_and_a_few_vectors():
    n, m = 2000, 10
    A = diagonal_operator(torch.linspace(1, 2, n, dtype=DOUBLE))
    system = System(A, torch.ones(n, dtype=DOUBLE), rtol=1e-6)
    with PeakMemory() as memory:
        assert gmres(system, m).converged
    assert memory.peak == pytest.approx((m + 1 + 4) * 8 * n, rel=0.01)


def test_what_it_cannot_solve_is_refused():
    with pytest.raises(ShapeError, match="lsmr"):
        gmres(System(dense_operator(torch.ones(3, 2)), torch.ones(3)))
    with pytest.raises(ArgumentError, match="restart"):
        gmres(System(dense_operator(torch.eye(2)), torch.ones(2)), restart=0)
