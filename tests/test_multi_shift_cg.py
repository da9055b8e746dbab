"""Multi-shift conjugate gradients: the products of one system, the answers of all."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hesse.checkpoint import Checkpoint
from hesse.errors import ArgumentError, OperatorError, Status
from hesse.krylov import MultiShiftCG, solve
from hesse.krylov.system import System
from hesse.operators import dense_operator, diagonal_operator, function_operator, identity_operator
from hesse.progress import Run
from hesse.testing import CountingOperator, PeakMemory, symmetric_matrix

DOUBLE = torch.float64


def multi_shift_cg(system, shifts):
    return MultiShiftCG(shifts).solve_system(system)


def vector(n, seed=1):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def true_norms(M, b, shifts, x):
    shifts = torch.as_tensor(shifts, dtype=DOUBLE)
    return (b[:, None] - M @ x.double() - x.double() * shifts).norm(dim=0)


def test_all_shifts_at_the_products_of_the_smallest_and_one_each_to_verify():
    M, b, shifts = symmetric_matrix(torch.logspace(0, 3, 80)), vector(80), [10.0, -0.5, 0.0, 100.0]
    A = CountingOperator(dense_operator(M))
    solution = multi_shift_cg(System(A, b, rtol=1e-8), shifts)
    smallest = dense_operator(M) - 0.5 * identity_operator(80)
    alone = solve(smallest, b, rtol=1e-8, method="cg")
    assert solution.converged
    assert solution.iterations == alone.iterations
    assert A.products == solution.products == solution.iterations + len(shifts)


def test_every_system_has_the_iterates_of_cg():
    M, b, shifts = symmetric_matrix(torch.logspace(0, 2, 60)), vector(60), [0.0, 0.3, 5.0]
    for k in (1, 5, 12):
        system = System(dense_operator(M), b, rtol=1e-12, max_iterations=k)
        x = multi_shift_cg(system, shifts).x
        for i, shift in enumerate(shifts):
            shifted = dense_operator(M + shift * torch.eye(60, dtype=DOUBLE))
            alone = solve(shifted, b, rtol=1e-12, max_iterations=k, method="cg")
            torch.testing.assert_close(x[:, i], alone.x, rtol=0.0, atol=1e-11)


@settings(max_examples=30)
@given(
    st.integers(1, 30),
    st.lists(st.floats(0, 1e4), min_size=1, max_size=5),
    st.floats(0, 3),
    st.integers(0, 10**6),
)
def test_agrees_with_dense_solves(n, shifts, log_condition, seed):
    M, b = symmetric_matrix(torch.logspace(0, log_condition, n), seed), vector(n, seed + 1)
    system = System(dense_operator(M), b, rtol=1e-9, max_iterations=40 * n)
    solution = multi_shift_cg(system, shifts)
    assert solution.converged
    for i, shift in enumerate(shifts):
        exact = torch.linalg.solve(M + shift * torch.eye(n, dtype=DOUBLE), b)
        # |error| <= |residual| / smallest eigenvalue, which is at least 1
        assert (solution.x[:, i] - exact).norm() <= 1.01e-9 * b.norm()
    true = true_norms(M, b, shifts, solution.x)
    torch.testing.assert_close(solution.residual_norms, true, rtol=0.0, atol=1e-10)
    assert solution.residual_norm == float(solution.residual_norms.max())


def test_what_is_solved_is_left_alone():
    M, b, shifts = symmetric_matrix(torch.logspace(0, 3, 60)), vector(60), [0.0, 1e8]
    seen = []
    run = Run("multi_shift_cg", callback=lambda state: seen.append((state.active, state.x.clone())))
    multi_shift_cg(System(dense_operator(M), b, rtol=1e-4, run=run), shifts)
    active = [a for a, _ in seen]
    assert active[0] == 1  # the larger shift takes one iteration
    assert all(torch.equal(x[:, 1], seen[0][1][:, 1]) for _, x in seen)


def test_those_that_miss_the_tolerance_go_on_alone():
    M, b, shifts = symmetric_matrix(torch.logspace(0, 2, 60)), vector(60), [0.0, 1.0, 1e5]
    calls, seen = [], []

    def product(v):
        calls.append(1)
        return M @ v * (1.0 + 1e-5 * (len(calls) == 3))  # an error that the recurrence cannot see

    A = function_operator(product, 60, symmetric=True, dtype=DOUBLE)
    run = Run("multi_shift_cg", callback=lambda state: seen.append((state.first, state.active)))
    solution = multi_shift_cg(System(A, b, rtol=1e-9, run=run), shifts)
    assert solution.converged
    assert bool((true_norms(M, b, shifts, solution.x) <= 1e-9 * b.norm()).all())
    assert (
        solution.products == len(calls) == solution.iterations + 2 * len(shifts)
    )  # verified twice
    assert (1, 1) in seen  # the system with shift 1, by itself
    assert (2, 1) not in seen  # that with shift 1e5 was left alone before the error


def test_zero_takes_no_product():
    A = CountingOperator(dense_operator(symmetric_matrix([1.0, 2.0, 3.0])))
    solution = multi_shift_cg(System(A, torch.zeros(3, dtype=DOUBLE)), [0.0, 1.0])
    assert (A.products, solution.converged, tuple(solution.x.shape)) == (0, True, (3, 2))
    assert not solution.x.any()


def test_as_many_iterations_as_distinct_eigenvalues():
    A = dense_operator(symmetric_matrix([1.0] * 10 + [5.0] * 10 + [9.0] * 10))
    assert multi_shift_cg(System(A, vector(30), rtol=1e-10), [0.0, 1.0]).iterations == 3
    ones = diagonal_operator(torch.ones(5))
    assert multi_shift_cg(System(ones, torch.ones(5)), [0.0, 1.0]).iterations == 1


def test_one_equation_equal_shifts_and_shifts_as_a_tensor():
    system = System(diagonal_operator(torch.tensor([4.0])), torch.tensor([2.0]))
    solution = multi_shift_cg(system, torch.tensor([4.0, 0.0, 0.0]))
    torch.testing.assert_close(solution.x, torch.tensor([[0.25, 0.5, 0.5]]))


def test_a_seed_that_is_not_definite_returns_the_direction():
    M, b = symmetric_matrix(torch.linspace(-1, 1, 12)), vector(12)
    solution = multi_shift_cg(System(dense_operator(M), b, rtol=1e-8), [0.0, 2.0])
    p = solution.direction
    assert solution.status is Status.NEGATIVE_CURVATURE
    assert float(p @ M @ p) <= 0.0
    true = true_norms(M, b, [0.0, 2.0], solution.x)
    torch.testing.assert_close(solution.residual_norms, true, rtol=0.0, atol=1e-12)


@pytest.mark.fast_cases(30)
@pytest.mark.parametrize("seed", range(100))
def test_on_indefinite_matrices_never_a_wrong_converged(seed):
    M, b, shifts = symmetric_matrix(vector(12, seed), seed), vector(12, seed + 100), [0.0, 1.0, 4.0]
    solution = multi_shift_cg(System(dense_operator(M), b, rtol=1e-8), shifts)
    true = true_norms(M, b, shifts, solution.x)
    assert solution.converged == bool((true <= 1e-8 * b.norm()).all())


def test_a_shift_makes_a_singular_system_solvable():
    M, b = symmetric_matrix([0.0, 0.0, 1.0, 2.0, 3.0]), vector(5)
    assert multi_shift_cg(System(dense_operator(M), b, rtol=1e-8), [0.1, 1.0]).converged
    assert not multi_shift_cg(System(dense_operator(M), b, rtol=1e-8), [0.0, 1.0]).converged


def test_a_condition_of_1e12_is_never_falsely_solved():
    M, b, shifts = symmetric_matrix(torch.logspace(0, 12, 60)), vector(60), [0.0, 1e3, 1e6]
    solution = multi_shift_cg(System(dense_operator(M), b, rtol=1e-8), shifts)
    true = true_norms(M, b, shifts, solution.x)
    assert solution.converged == bool((true <= 1e-8 * b.norm()).all())


def test_single_precision():
    A, b = dense_operator(symmetric_matrix(torch.logspace(0, 2, 60)).float()), vector(60).float()
    assert multi_shift_cg(System(A, b, rtol=1e-5), [0.0, 1.0]).converged
    system = System(A, b, rtol=1e-9, max_iterations=10**4)
    assert multi_shift_cg(system, [0.0, 1.0]).status is Status.STAGNATED


def test_a_product_that_is_nan_returns_the_last_finite_iterate():
    calls = []

    def product(v):
        calls.append(1)
        return v * torch.arange(1.0, 9.0) * (math.nan if len(calls) == 3 else 1.0)

    A = function_operator(product, 8, symmetric=True)
    solution = multi_shift_cg(System(A, vector(8).float()), [0.0, 1.0])
    assert (solution.status, solution.iterations) == (Status.NOT_FINITE, 2)
    assert torch.isfinite(solution.x).all()


def long_system(**limits):
    run = Run("multi_shift_cg", **limits)
    return System(
        dense_operator(symmetric_matrix(torch.logspace(0, 3, 60))), vector(60), rtol=1e-9, run=run
    )


def interrupt(state):
    if state.iteration == 4:
        raise KeyboardInterrupt


def test_it_can_be_stopped_in_every_way():
    for limits, status, iterations in [
        ({"max_products": 6}, Status.MAX_PRODUCTS, 4),
        ({"max_seconds": 1e-9}, Status.MAX_SECONDS, 1),
        ({"callback": lambda state: state.iteration == 4}, Status.STOPPED, 4),
        ({"callback": interrupt}, Status.INTERRUPTED, 4),
    ]:
        solution = multi_shift_cg(long_system(**limits), [0.0, 1.0])
        assert (solution.status, solution.converged) == (status, False)
        assert solution.iterations == iterations


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr("hesse.checkpoint._PAUSE", 0)

    def kill(state):
        if state.iteration == 50:
            raise RuntimeError("killed")

    shifts = [0.0, 1.0, 1e3, 0.5]
    whole = multi_shift_cg(long_system(), shifts)
    system = long_system(callback=kill)
    system.checkpoint = Checkpoint(tmp_path / "run", system.A, method="multi_shift_cg")
    with pytest.raises(RuntimeError, match="killed"):
        multi_shift_cg(system, shifts)
    seen = []
    again = long_system(callback=lambda state: seen.append(state.iteration))
    again.checkpoint = system.checkpoint
    resumed = multi_shift_cg(again, shifts)
    assert seen[0] == 50  # 49 steps were saved
    assert torch.equal(resumed.x, whole.x)
    assert (resumed.products, resumed.history) == (whole.products, whole.history)


def test_memory_is_two_vectors_a_shift_and_three():
    n, s = 2000, 10
    A = diagonal_operator(torch.linspace(1, 2, n, dtype=DOUBLE))
    shifts = torch.linspace(0, 1, s)
    b = torch.ones(n, dtype=DOUBLE)
    peaks = []
    run = Run("multi_shift_cg", callback=lambda state: peaks.append(memory.peak))
    with PeakMemory() as memory:
        assert multi_shift_cg(System(A, b, rtol=1e-6, run=run), shifts).converged
    assert max(peaks) <= (2 * s + 4.1) * 8 * n
    assert memory.peak == pytest.approx((4 * s + 1) * 8 * n, rel=0.01)


def test_what_it_cannot_solve_is_refused():
    A, b = diagonal_operator(torch.ones(2)), torch.ones(2)
    for system in (System(A, b, x0=b), System(A, b, preconditioner=A)):
        with pytest.raises(ArgumentError, match="Leave both out"):
            multi_shift_cg(system, [0.0])
    for shifts in ([], [math.nan], 1.0):
        with pytest.raises(ArgumentError, match="finite shifts"):
            multi_shift_cg(System(A, b), shifts)
    with pytest.raises(OperatorError, match="symmetric"):
        multi_shift_cg(System(dense_operator(torch.tensor([[1.0, 2.0], [0.0, 1.0]])), b), [0.0])
