"""LSMR: compatible systems, least squares and the penalty, with the counts and what it says."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hesse.checkpoint import Checkpoint
from hesse.errors import ArgumentError, OperatorError, Status
from hesse.krylov import LSMR
from hesse.krylov.system import System
from hesse.operators import dense_operator, diagonal_operator, function_operator
from hesse.progress import Run
from hesse.testing import CountingOperator, PeakMemory

DOUBLE = torch.float64


def lsmr(system, tikhonov=0.0):
    return LSMR(tikhonov).solve_system(system)


def matrix(values, m, n, seed=0):
    """An m x n matrix with these singular values and random singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.as_tensor(values, dtype=DOUBLE)
    k = len(values)
    U, _ = torch.linalg.qr(torch.randn(m, k, generator=generator, dtype=DOUBLE))
    V, _ = torch.linalg.qr(torch.randn(n, k, generator=generator, dtype=DOUBLE))
    return U @ torch.diag(values) @ V.T


def vector(n, seed=1):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def minimiser(M, b, tikhonov, x0):
    """The one nearest to x0 by the singular values."""
    if tikhonov > 0.0:
        return torch.linalg.solve(M.T @ M + tikhonov * torch.eye(M.shape[1], dtype=DOUBLE), M.T @ b)
    return x0 + torch.linalg.pinv(M, rtol=1e-10) @ (b - M @ x0)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(
    ("m", "n", "tikhonov", "to_verify"),
    [(40, 20, 0.0, 2), (40, 20, 0.5, 2), (20, 40, 0.0, 1), (20, 40, 0.5, 2), (20, 20, 0.0, 1)],
)
def test_two_products_an_iteration(m, n, tikhonov, to_verify, warm):
    M = matrix(torch.linspace(1, 3, 20), m, n)
    A = CountingOperator(dense_operator(M))
    solution = lsmr(System(A, vector(m), vector(n, 2) if warm else None, rtol=1e-8), tikhonov)
    assert solution.converged
    assert A.products == solution.products == 2 * solution.iterations + 1 + to_verify + warm
    compatible = tikhonov == 0.0 and m <= n
    assert solution.status is (Status.CONVERGED if compatible else Status.LEAST_SQUARES)


@settings(max_examples=40)
@given(
    st.integers(1, 25),
    st.integers(1, 25),
    st.floats(0, 2),
    st.sampled_from([0.0, 0.1, 10.0]),
    st.integers(0, 10**6),
    st.booleans(),
)
def test_agrees_with_the_singular_values(m, n, log_condition, tikhonov, seed, warm):
    M = matrix(torch.logspace(0, log_condition, min(m, n)), m, n, seed)
    b, x0 = vector(m, seed + 1), vector(n, seed + 2) if warm else None
    solution = lsmr(System(dense_operator(M), b, x0, rtol=1e-11, max_iterations=50 * n), tikhonov)
    start = torch.zeros(n, dtype=DOUBLE) if x0 is None else x0
    expected = minimiser(M, b, tikhonov, start)
    assert solution.converged
    # |error| <= |gradient| / smallest square of a singular value, which is 1; |A| <= 100
    scale = float(b.norm() + (M @ start).norm() + start.norm())
    assert (solution.x - expected).norm() <= 1e-8 * scale
    assert solution.residual_norm == pytest.approx(float((b - M @ solution.x).norm()), abs=1e-11)


def test_tikhonov_is_not_squared():
    A = diagonal_operator(torch.tensor([1.0, 2.0], dtype=DOUBLE))
    solution = lsmr(System(A, torch.ones(2, dtype=DOUBLE), rtol=1e-12), tikhonov=4.0)
    torch.testing.assert_close(solution.x, torch.tensor([1 / 5, 2 / 8], dtype=DOUBLE))


@pytest.mark.parametrize("tikhonov", [0.0, 0.3])
def test_has_the_iterates_of_scipy(tikhonov):
    linalg = pytest.importorskip("scipy.sparse.linalg")
    M, b = matrix(torch.linspace(1, 5, 20), 40, 20), vector(40)
    for k in (1, 4, 9):
        theirs = linalg.lsmr(
            *(M.numpy(), b.numpy(), math.sqrt(tikhonov)), maxiter=k, atol=0.0, btol=0.0, conlim=0.0
        )
        system = System(dense_operator(M), b, rtol=1e-12, max_iterations=k)
        solution = lsmr(system, tikhonov)
        assert solution.status is Status.MAX_ITERATIONS
        expected = torch.from_numpy(theirs[0])
        torch.testing.assert_close(solution.x, expected, rtol=0.0, atol=1e-10)
        assert solution.history[-1] == pytest.approx(theirs[3], rel=1e-9)


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
def test_a_deficient_rank_gives_the_minimiser_of_least_norm(dtype):
    M, b = matrix([0.0, 0.0, 1.0, 2.0, 3.0], 12, 8), vector(12)
    solution = lsmr(System(dense_operator(M.to(dtype)), b.to(dtype), rtol=1e-6))
    expected = torch.linalg.pinv(M, rtol=1e-8) @ b
    assert (solution.status, solution.iterations) == (Status.LEAST_SQUARES, 3)
    assert (solution.x - expected).norm() <= 1e-4 * expected.norm()


def test_zero_takes_no_product_and_an_exact_start_no_iteration():
    M, b = matrix([1.0, 2.0, 3.0], 3, 3), vector(3)
    A = CountingOperator(dense_operator(M))
    solution = lsmr(System(A, torch.zeros(3, dtype=DOUBLE), vector(3)))
    assert (A.products, solution.converged, bool(solution.x.any())) == (0, True, False)
    solution = lsmr(System(A, b, torch.linalg.solve(M, b)))
    assert (A.products, solution.converged, solution.iterations) == (1, True, 0)


def test_a_right_hand_side_outside_the_range():
    A = CountingOperator(dense_operator(torch.tensor([[1.0], [0.0]])))
    solution = lsmr(System(A, torch.tensor([0.0, 2.0])))
    assert (solution.status, solution.converged) == (Status.LEAST_SQUARES, True)
    assert (solution.iterations, A.products, float(solution.x)) == (0, 3, 0.0)
    assert solution.residual_norm == 2.0


def test_one_equation_and_the_identity_take_one_iteration():
    assert float(lsmr(System(dense_operator(torch.tensor([[4.0]])), torch.ones(1))).x) == 0.25
    assert lsmr(System(diagonal_operator(torch.ones(7)), torch.ones(7))).iterations == 1


def test_as_many_iterations_as_distinct_singular_values():
    M = matrix([1.0] * 5 + [3.0] * 5 + [7.0] * 5, 30, 15)
    assert lsmr(System(dense_operator(M), vector(30), rtol=1e-9)).iterations == 3


@pytest.mark.parametrize("seed", range(50))
def test_never_a_wrong_converged(seed):
    M = matrix(10 ** vector(10, seed), 15, 10, seed)
    b = vector(15, seed + 100)
    for tikhonov in (0.0, 1e-3):
        system = System(dense_operator(M), b, rtol=1e-9, max_iterations=25)
        solution = lsmr(system, tikhonov)
        r = b - M @ solution.x
        root = math.sqrt(float(r @ r) + tikhonov * float(solution.x @ solution.x))
        gradient = float((M.T @ r - tikhonov * solution.x).norm())
        largest = math.hypot(float(torch.linalg.matrix_norm(M, 2)), math.sqrt(tikhonov))
        if solution.converged:
            assert gradient <= 1e-9 * largest * root
        else:
            assert solution.status in (Status.MAX_ITERATIONS, Status.STAGNATED)


def test_a_condition_of_1e12_is_never_falsely_solved():
    M, b = matrix(torch.logspace(0, 12, 40), 40, 40), vector(40)
    solution = lsmr(System(dense_operator(M), b, rtol=1e-14, max_iterations=500))
    assert not solution.converged
    assert (b - M @ solution.x).norm() > 1e-14 * b.norm()


def test_single_precision_stagnates_and_says_so():
    M, b = matrix(torch.logspace(0, 2, 30), 60, 30).float(), vector(60).float()
    system = System(dense_operator(M), b, rtol=1e-10, max_iterations=10**4)
    assert lsmr(system).status is Status.STAGNATED


@pytest.mark.parametrize("adjoint", [False, True])
def test_a_product_that_is_nan_returns_the_last_finite_iterate(adjoint):
    d, calls = torch.tensor([1.0, 2.0, 3.0]), [0, 0]

    def product(which):
        def apply(v):
            calls[which] += 1
            return v * d * (math.nan if which == adjoint and calls[which] == 4 - which else 1.0)

        return apply

    A = function_operator(product(0), 3, 3, rmatvec=product(1))
    solution = lsmr(System(A, torch.ones(3)))
    assert (solution.status, solution.converged) == (Status.NOT_FINITE, False)
    assert torch.isfinite(solution.x).all()


def long_system(**limits):
    M = matrix(torch.logspace(0, 2, 50), 80, 50)
    return System(dense_operator(M), vector(80), rtol=1e-9, run=Run("lsmr", **limits))


def interrupt(state):
    if state.iteration == 4:
        raise KeyboardInterrupt


def test_it_can_be_stopped_in_every_way():
    for limits, status, iterations in [
        ({"max_products": 10}, Status.MAX_PRODUCTS, 4),
        ({"max_seconds": 1e-9}, Status.MAX_SECONDS, 1),
        ({"callback": lambda state: state.iteration == 4}, Status.STOPPED, 4),
        ({"callback": interrupt}, Status.INTERRUPTED, 4),
    ]:
        solution = lsmr(long_system(**limits))
        assert (solution.status, solution.converged) == (status, False)
        assert solution.iterations == iterations


@pytest.mark.parametrize("tikhonov", [0.0, 2.0])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, monkeypatch, tikhonov):
    monkeypatch.setattr("hesse.checkpoint._PAUSE", 0)

    def kill(state):
        if state.iteration == 20:
            raise RuntimeError("killed")

    whole = lsmr(long_system(), tikhonov)
    system = long_system(callback=kill)
    system.checkpoint = Checkpoint(tmp_path / "run", system.A, method="lsmr")
    with pytest.raises(RuntimeError, match="killed"):
        lsmr(system, tikhonov)
    seen = []
    again = long_system(callback=lambda state: seen.append(state.iteration))
    again.checkpoint = system.checkpoint
    resumed = lsmr(again, tikhonov)
    assert seen[0] == 20  # 19 steps were saved
    assert torch.equal(resumed.x, whole.x)
    assert (resumed.products, resumed.history) == (whole.products, whole.history)


def test_memory_is_nine_vectors():
    n = 2000
    d = torch.linspace(1, 2, n, dtype=DOUBLE)
    A = function_operator(lambda v: d * v, n, n, rmatvec=lambda u: d * u, dtype=DOUBLE)
    system = System(A, torch.ones(n, dtype=DOUBLE), rtol=1e-6)
    _ = A @ d, A @ d  # it keeps two vectors of its own, to test what the function gives
    with PeakMemory() as memory:
        assert lsmr(system).converged
    assert memory.peak == pytest.approx(9 * 8 * n, rel=0.01)


def test_what_it_cannot_solve_is_refused():
    A, b = dense_operator(torch.eye(2)), torch.ones(2)
    with pytest.raises(ArgumentError, match="preconditioner"):
        lsmr(System(A, b, preconditioner=A))
    with pytest.raises(ArgumentError, match="tikhonov"):
        lsmr(System(A, b), tikhonov=-1.0)
    with pytest.raises(OperatorError, match="adjoint"):
        lsmr(System(function_operator(lambda v: v, 2), b))
