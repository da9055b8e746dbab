"""Conjugate gradients: its counts, its answers, and what it says of them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hesse.errors import HesseError, OperatorError, Status
from hesse.krylov import CG, solve
from hesse.krylov.stopping import EisenstatWalker, geometric_grid, relative_progress
from hesse.krylov.system import System
from hesse.memory.peak import PeakMemory
from hesse.operators import dense_operator, diagonal_operator, function_operator
from hesse.testing import CountingOperator, symmetric_matrix

DOUBLE = torch.float64


def vector(n, seed=1):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def test_one_product_an_iteration_and_one_to_verify():
    A = CountingOperator(dense_operator(symmetric_matrix(torch.logspace(0, 2, 40))))
    solution = solve(A, vector(40), "cg", rtol=1e-8)
    assert solution.converged
    assert A.products == solution.products == solution.iterations + 1


def test_without_verification_products_equal_iterations_and_nothing_is_said_to_converge():
    A = CountingOperator(dense_operator(symmetric_matrix(torch.logspace(0, 2, 40))))
    solution = solve(A, vector(40), CG(verify=False), rtol=1e-8)
    assert A.products == solution.products == solution.iterations
    assert solution.status is Status.TRUNCATED
    assert not solution.converged


def test_a_warm_start_costs_one_product_more_and_an_exact_one_no_iteration():
    M, b = symmetric_matrix([1.0, 2.0, 3.0]), vector(3)
    A = CountingOperator(dense_operator(M))
    solution = solve(A, b, "cg", x0=torch.linalg.solve(M, b))
    assert (solution.iterations, A.products, solution.converged) == (0, 1, True)


@pytest.mark.parametrize("x0", [None, torch.ones(3, dtype=DOUBLE)])
def test_zero_takes_no_product(x0):
    A = CountingOperator(dense_operator(symmetric_matrix([1.0, 2.0, 3.0])))
    solution = solve(A, torch.zeros(3, dtype=DOUBLE), "cg", x0=x0)
    assert A.products == 0
    assert solution.converged
    assert not solution.x.any()


def test_as_many_iterations_as_distinct_eigenvalues():
    solution = solve(
        dense_operator(symmetric_matrix([1.0] * 10 + [5.0] * 10 + [9.0] * 10)), vector(30), "cg"
    )
    assert solution.iterations == 3


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.floats(0, 4), st.integers(0, 10**6))
def test_agrees_with_a_dense_solve(n, log_condition, seed):
    M = symmetric_matrix(torch.logspace(0, log_condition, n), seed)
    b = vector(n, seed + 1)
    solution = solve(dense_operator(M), b, "cg", rtol=1e-10)
    exact = torch.linalg.solve(M, b)
    assert solution.converged
    # |error| <= |residual| / smallest eigenvalue, which is 1
    assert (solution.x - exact).norm() <= 1.01e-10 * b.norm()
    model = 0.5 * solution.x @ M @ solution.x - b @ solution.x
    assert solution.model_value == pytest.approx(float(model), rel=1e-9)
    assert solution.residual_norm == pytest.approx(float((b - M @ solution.x).norm()), abs=1e-12)


def test_the_inverse_as_preconditioner_takes_one_iteration():
    M = symmetric_matrix(torch.logspace(0, 6, 30))
    inverse = torch.linalg.inv(M)
    inverse = dense_operator((inverse + inverse.T) / 2)
    assert solve(dense_operator(M), vector(30), "cg", preconditioner=inverse).iterations <= 2


def test_jacobi_helps_a_badly_scaled_matrix():
    scale = torch.logspace(0, 3, 50, dtype=DOUBLE)
    M = scale[:, None] * symmetric_matrix(torch.linspace(1, 2, 50)) * scale
    jacobi = diagonal_operator(1 / M.diagonal())
    plain = solve(dense_operator(M), vector(50), "cg", rtol=1e-8)
    better = solve(dense_operator(M), vector(50), "cg", rtol=1e-8, preconditioner=jacobi)
    assert better.converged
    assert better.iterations < 0.2 * plain.iterations


@pytest.mark.parametrize("seed", range(50))
def test_on_indefinite_matrices_never_a_wrong_converged(seed):
    values = vector(12, seed)
    M, b = symmetric_matrix(values, seed), vector(12, seed + 100)
    solution = solve(dense_operator(M), b, "cg", rtol=1e-8)
    if solution.status is Status.NEGATIVE_CURVATURE:
        p = solution.direction
        # not positive beyond the rounding of the product, which is eps |p| |A p|
        assert float(p @ M @ p) <= 1e-15 * float(p.norm() * (M @ p).norm())
        assert not solution.converged
    if solution.converged:
        assert (b - M @ solution.x).norm() <= 1e-8 * b.norm()


def test_a_negative_definite_matrix_returns_the_first_direction():
    solution = solve(diagonal_operator(torch.tensor([-1.0, -2.0])), torch.ones(2), "cg")
    assert solution.status is Status.NEGATIVE_CURVATURE
    assert solution.products == 1
    assert torch.equal(solution.direction, torch.ones(2))
    assert not solution.x.any()


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-3, 10), st.integers(0, 10**6), st.booleans())
def test_a_radius_is_never_exceeded_and_descent_continues_to_it(radius, seed, definite):
    values = vector(8, seed).abs() + 0.1 if definite else vector(8, seed)
    M, b = symmetric_matrix(values, seed), vector(8, seed + 1)
    solution = solve(dense_operator(M), b, CG(radius=radius), rtol=1e-10)
    length = float(solution.x.norm())
    assert length <= radius * (1 + 1e-12)
    if solution.status in (Status.BOUNDARY, Status.NEGATIVE_CURVATURE):
        assert length == pytest.approx(radius, rel=1e-10)
    model = float(0.5 * solution.x @ M @ solution.x - b @ solution.x)
    assert solution.model_value == pytest.approx(model, rel=1e-8, abs=1e-10)
    # Steihaug: at least as good as the best step along the right-hand side (the Cauchy point)
    t = min(float(b @ b) / float(b @ M @ b), radius / float(b.norm()))
    if float(b @ M @ b) <= 0:
        t = radius / float(b.norm())
    assert model <= float(0.5 * t * t * (b @ M @ b) - t * (b @ b)) + 1e-9


def test_singular_systems_consistent_and_not():
    M = symmetric_matrix([0.0, 0.0, 1.0, 2.0, 3.0])
    b = vector(5)
    assert solve(dense_operator(M), M @ b, "cg", rtol=1e-10).converged
    assert not solve(dense_operator(M), b, "cg", rtol=1e-10).converged


def test_a_condition_of_1e12_is_never_falsely_solved():
    M, b = symmetric_matrix(torch.logspace(0, 12, 60)), vector(60)
    solution = solve(dense_operator(M), b, "cg", rtol=1e-8, max_iterations=3000)
    true = float((b - M @ solution.x).norm())
    assert solution.converged == (true <= 1e-8 * float(b.norm()))


def test_single_precision_stagnates_and_says_so():
    M = symmetric_matrix(torch.logspace(0, 2, 60)).float()
    solution = solve(dense_operator(M), vector(60).float(), "cg", rtol=1e-9, max_iterations=10**4)
    assert solution.status is Status.STAGNATED
    assert not solution.converged


def test_the_limit_is_kept_and_reported():
    solution = solve(
        dense_operator(symmetric_matrix(torch.logspace(0, 4, 60))),
        vector(60),
        "cg",
        max_iterations=3,
    )
    assert (solution.iterations, solution.status) == (3, Status.MAX_ITERATIONS)


def test_a_product_that_is_nan_returns_the_last_finite_iterate():
    calls = []

    def product(v):
        calls.append(1)
        return v * torch.tensor([1.0, 2.0, 3.0]) if len(calls) < 2 else v * math.nan

    solution = solve(function_operator(product, 3, symmetric=True), torch.ones(3), "cg")
    assert solution.status is Status.NOT_FINITE
    assert torch.isfinite(solution.x).all()


def test_ctrl_c_returns_the_best_so_far():
    calls = []

    def product(v):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return v * torch.tensor([1.0, 2.0, 3.0])

    solution = solve(function_operator(product, 3, symmetric=True), torch.ones(3), "cg")
    assert (solution.status, solution.iterations) == (Status.INTERRUPTED, 2)


def test_the_callback_sees_every_step_and_may_stop():
    seen = []

    def watch(state):
        seen.append(state.iteration)
        return state.iteration == 4

    A = dense_operator(symmetric_matrix(torch.logspace(0, 3, 30)))
    solution = solve(A, vector(30), "cg", callback=watch)
    assert seen == [1, 2, 3, 4]
    assert solution.status is Status.STOPPED


def test_iterates_are_kept_on_the_grid_and_are_copies():
    M, b = symmetric_matrix(torch.logspace(0, 3, 40)), vector(40)
    solution = solve(dense_operator(M), b, CG(keep=geometric_grid()), rtol=1e-12, max_iterations=20)
    assert [kept.iteration for kept in solution.iterates] == [5, 7, 10, 13, 17]
    for kept in solution.iterates:
        model = 0.5 * kept.x @ M @ kept.x - b @ kept.x
        assert kept.model_value == pytest.approx(float(model), rel=1e-9)


def test_relative_progress_is_martens_rule():
    values = []

    def record(state):
        values.append(state.model_value)

    A, b = dense_operator(symmetric_matrix(torch.logspace(0, 3, 200))), vector(200)
    solution = solve(A, b, CG(stop=relative_progress(), verify=False), rtol=0.0, callback=record)
    i = solution.iterations
    values.append(solution.model_value)

    def rule(i):
        window = max(10, math.ceil(0.1 * i))
        gain = values[i - 1] - values[i - 1 - window]
        return i > window and gain / values[i - 1] < 5e-4 * window

    assert [j for j in range(1, i + 1) if rule(j)] == [i]


def truncated(b, rule, seen=None):
    A = dense_operator(symmetric_matrix(torch.logspace(0, 3, 200)))
    return solve(A, b, CG(stop=rule, verify=False), rtol=0.0, callback=seen)


def test_a_rule_stops_equal_columns_at_the_same_iteration():
    iterations = []
    b, rule = vector(200), relative_progress()
    block = truncated(
        torch.stack([b, b], dim=1), rule, lambda state: iterations.append(state.iteration)
    )
    one = truncated(b, rule)
    assert block.iterations == 2 * one.iterations
    assert iterations == 2 * [*range(1, one.iterations + 1)]
    assert torch.equal(block.x, torch.stack([one.x, one.x], dim=1))


def test_a_rule_stops_a_second_solve_as_the_first():
    rule = relative_progress()
    first, second = (truncated(vector(200), rule) for _ in range(2))
    assert first.status is second.status is Status.TRUNCATED
    assert first.iterations == second.iterations > 10
    assert torch.equal(first.x, second.x)


def test_a_forcing_term_depends_on_the_last_alone():
    rule = EisenstatWalker()
    last = rule(0.5, rule(1.0))
    assert rule(0.01, last) == rule(0.01, last)
    assert rule(0.5, last) == last  # a rejected step


def test_what_is_not_a_symmetric_positive_system_is_refused():
    with pytest.raises(OperatorError, match="symmetric"):
        solve(dense_operator(torch.tensor([[1.0, 2.0], [0.0, 1.0]])), torch.ones(2), "cg")
    with pytest.raises(OperatorError, match="positive definite"):
        solve(
            diagonal_operator(torch.ones(2)),
            torch.ones(2),
            "cg",
            preconditioner=diagonal_operator(-torch.ones(2)),
        )
    with pytest.raises(HesseError, match="finite"):
        solve(diagonal_operator(torch.ones(2)), torch.tensor([1.0, math.nan]), "cg")


def test_solve_takes_trees_and_matrices():
    d = {"a": torch.tensor([2.0]), "b": torch.tensor([4.0, 5.0])}
    solution = solve(diagonal_operator(d), {"a": torch.ones(1), "b": torch.ones(2)})
    torch.testing.assert_close(solution.x["b"], torch.tensor([0.25, 0.2]))
    assert solve(torch.eye(3), torch.ones(3)).converged


@pytest.mark.parametrize(
    "call",
    [
        lambda: solve(torch.eye(3), torch.ones(2)),
        lambda: solve(torch.eye(3), torch.ones(3, dtype=DOUBLE)),
        lambda: solve(torch.eye(3), torch.ones(2, 2)),
        lambda: solve(torch.eye(3), torch.ones(3), method="magic"),
        lambda: solve(torch.eye(3), torch.ones(3), preconditioner=torch.eye(2)),
        lambda: solve([[1.0]], torch.ones(1)),
    ],
)
def test_wrong_systems_get_the_house_error(call):
    with pytest.raises(HesseError, match="remedy"):
        call()


@pytest.mark.parametrize(("given", "vectors"), [("nothing", 5), ("x0", 5), ("preconditioner", 6)])
def test_memory_is_a_few_vectors(given, vectors):
    n = 20_000
    d = torch.linspace(1, 100, n, dtype=DOUBLE)
    A, b = diagonal_operator(d), torch.ones(n, dtype=DOUBLE)
    x0 = 0.5 * b if given == "x0" else None
    M = diagonal_operator(1 / d + 0.1) if given == "preconditioner" else None
    with PeakMemory() as memory:
        assert CG().solve_system(System(A, b, x0, M, rtol=1e-6)).converged
    assert memory.peak == pytest.approx(vectors * 8 * n, rel=0.01)
