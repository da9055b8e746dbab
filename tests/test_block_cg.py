"""Block conjugate gradients: the counts, dependent and finished columns, and what it says."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hesse.checkpoint import Checkpoint
from hesse.errors import OperatorError, Status
from hesse.krylov import BlockCG, solve
from hesse.krylov.system import System
from hesse.operators import dense_operator, diagonal_operator, function_operator
from hesse.progress import Run
from hesse.testing import CountingOperator, PeakMemory, symmetric_matrix

DOUBLE = torch.float64


def block_cg(system):
    return BlockCG().solve_system(system)


def block(n, k, seed=1):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def relative_residuals(M, B, solution):
    return (B - M @ solution.x.double()).norm(dim=0) / B.norm(dim=0)


def test_k_products_an_iteration_in_one_block_and_k_to_verify():
    blocks = []
    M = symmetric_matrix(torch.logspace(0, 2, 60))

    class Watched(type(dense_operator(M))):
        def _matmat(self, V):
            blocks.append(V.shape[1])
            return super()._matmat(V)

    A = CountingOperator(Watched(M, symmetric=True))
    solution = block_cg(System(A, block(60, 4), rtol=1e-10))
    assert solution.converged
    assert A.products == solution.products == sum(blocks)
    assert len(blocks) == solution.iterations + 1
    assert blocks[0] == blocks[-1] == 4
    assert blocks[:-1] == sorted(blocks[:-1], reverse=True)  # what is solved is left out


def test_a_block_takes_fewer_iterations_than_any_column():
    M, B = symmetric_matrix(torch.logspace(0, 4, 100)), block(100, 8)
    A = dense_operator(M)
    together = block_cg(System(A, B, rtol=1e-8))
    alone = [solve(A, b.contiguous(), rtol=1e-8, method="cg").iterations for b in B.T]
    assert together.iterations < 0.25 * min(alone)
    assert together.products < 0.5 * sum(alone)


def test_one_column_is_cg():
    M, B = symmetric_matrix(torch.logspace(0, 2, 40)), block(40, 1)
    alone = solve(dense_operator(M), B[:, 0].contiguous(), rtol=1e-8, method="cg")
    solution = block_cg(System(dense_operator(M), B, rtol=1e-8))
    assert (solution.iterations, solution.products) == (alone.iterations, alone.products)
    assert solution.history[:20] == pytest.approx(alone.history[:20], rel=1e-9)
    # rounding grows in both, to no more than the tolerance
    torch.testing.assert_close(solution.x[:, 0], alone.x, rtol=0.0, atol=1e-8)


@settings(max_examples=30)
@given(st.integers(1, 30), st.integers(1, 8), st.floats(0, 3), st.integers(0, 10**6), st.booleans())
def test_agrees_with_a_dense_solve(n, k, log_condition, seed, warm):
    M = symmetric_matrix(torch.logspace(0, log_condition, n), seed)
    B, X0 = block(n, k, seed + 1), block(n, k, seed + 2) if warm else None
    solution = block_cg(System(dense_operator(M), B, X0, rtol=1e-9))
    assert solution.converged
    # |error| <= |residual| / smallest eigenvalue, which is 1
    error = (solution.x - torch.linalg.solve(M, B)).norm(dim=0)
    assert bool((error <= 1.01e-9 * B.norm(dim=0)).all())
    true = (B - M @ solution.x).norm(dim=0)
    torch.testing.assert_close(solution.residual_norms, true, rtol=0.0, atol=1e-11)
    assert solution.residual_norm == float(solution.residual_norms.max())


def test_dependent_columns_cost_no_products():
    M, B = symmetric_matrix(torch.logspace(0, 3, 80)), block(80, 3)
    alone = block_cg(System(dense_operator(M), B, rtol=1e-8))
    dependent = torch.cat([B, B @ block(3, 5)], dim=1)
    solution = block_cg(System(dense_operator(M), dependent, rtol=1e-8))
    assert solution.converged
    assert float(relative_residuals(M, dependent, solution).max()) <= 1e-8
    # five more to verify, and a few where rounding is taken for a direction
    assert solution.products <= 1.1 * alone.products + 5


def test_more_columns_than_equations():
    M, B = symmetric_matrix([1.0, 2.0, 3.0]), block(3, 7)
    A = CountingOperator(dense_operator(M))
    solution = block_cg(System(A, B, rtol=1e-10))
    assert (solution.converged, solution.iterations, A.products) == (True, 1, 3 + 7)


def test_zero_columns_stay_zero_and_cost_one_product_each_to_verify():
    M, B = symmetric_matrix(torch.linspace(1, 2, 20)), block(20, 3)
    B[:, 1] = 0.0
    A = CountingOperator(dense_operator(M))
    solution = block_cg(System(A, B, block(20, 3, 5), rtol=1e-8))
    assert solution.converged
    assert not solution.x[:, 1].any()
    A.products = 0
    solution = block_cg(System(A, torch.zeros(20, 2, dtype=DOUBLE), block(20, 2)))
    assert (A.products, solution.converged, bool(solution.x.any())) == (0, True, False)


def test_an_exact_start_takes_k_products():
    M, B = symmetric_matrix(torch.linspace(1, 2, 20)), block(20, 3)
    A = CountingOperator(dense_operator(M))
    solution = block_cg(System(A, B, torch.linalg.solve(M, B)))
    assert (solution.iterations, A.products, solution.converged) == (0, 3, True)


def test_every_column_has_its_own_tolerance():
    M = symmetric_matrix(torch.logspace(0, 3, 60))
    B = block(60, 4) * torch.logspace(0, -9, 4)
    solution = block_cg(System(dense_operator(M), B, rtol=1e-8))
    assert solution.converged
    assert float(relative_residuals(M, B, solution).max()) <= 1e-8


def test_as_many_iterations_as_distinct_eigenvalues():
    M = symmetric_matrix([1.0] * 10 + [5.0] * 10 + [9.0] * 10)
    assert block_cg(System(dense_operator(M), block(30, 4), rtol=1e-10)).iterations == 3
    assert block_cg(System(diagonal_operator(torch.ones(9)), torch.ones(9, 2))).iterations == 1


def test_one_equation():
    system = System(diagonal_operator(torch.tensor([4.0])), torch.tensor([[2.0, 6.0]]))
    torch.testing.assert_close(block_cg(system).x, torch.tensor([[0.5, 1.5]]))


def test_preconditioned():
    scale = torch.logspace(0, 2, 50, dtype=DOUBLE)
    M = scale[:, None] * symmetric_matrix(torch.linspace(1, 2, 50)) * scale
    jacobi, B = diagonal_operator(1 / M.diagonal()), block(50, 3)
    plain = block_cg(System(dense_operator(M), B, rtol=1e-8))
    better = block_cg(System(dense_operator(M), B, preconditioner=jacobi, rtol=1e-8))
    assert better.converged
    assert float(relative_residuals(M, B, better).max()) <= 1e-8
    assert better.iterations < 0.5 * plain.iterations


@pytest.mark.fast_cases(30)
@pytest.mark.parametrize("seed", range(100))
def test_on_indefinite_matrices_never_a_wrong_converged(seed):
    M, B = symmetric_matrix(block(12, 1, seed)[:, 0], seed), block(12, 3, seed + 100)
    solution = block_cg(System(dense_operator(M), B, rtol=1e-8))
    if solution.status is Status.NEGATIVE_CURVATURE:
        p = solution.direction
        assert float(p @ M @ p) <= 1e-15 * float(p.norm() * (M @ p).norm())
        assert not solution.converged
    if solution.converged:
        assert float(relative_residuals(M, B, solution).max()) <= 1e-8


def test_singular_systems_consistent_and_not():
    M, B = symmetric_matrix([0.0, 0.0, 1.0, 2.0, 3.0]), block(5, 2)
    assert block_cg(System(dense_operator(M), M @ B, rtol=1e-8)).converged
    assert not block_cg(System(dense_operator(M), B, rtol=1e-8)).converged


def test_a_condition_of_1e12_is_never_falsely_solved():
    M, B = symmetric_matrix(torch.logspace(0, 12, 60)), block(60, 3)
    solution = block_cg(System(dense_operator(M), B, rtol=1e-8))
    assert solution.converged == bool((relative_residuals(M, B, solution) <= 1e-8).all())


def test_single_precision():
    M, B = symmetric_matrix(torch.logspace(0, 2, 60)), block(60, 4)
    A = dense_operator(M.float())
    assert block_cg(System(A, B.float(), rtol=1e-4)).converged
    solution = block_cg(System(A, B.float(), rtol=1e-9, max_iterations=10**4))
    assert solution.status is Status.STAGNATED


def test_a_product_that_is_nan_returns_the_last_finite_iterate():
    calls = []

    def product(v):
        calls.append(1)
        return v * torch.arange(1.0, 9.0) * (math.nan if len(calls) == 5 else 1.0)

    A = function_operator(product, 8, symmetric=True)
    solution = block_cg(System(A, block(8, 2).float()))
    assert (solution.status, solution.iterations) == (Status.NOT_FINITE, 2)
    assert torch.isfinite(solution.x).all()


def long_system(**limits):
    run = Run("block_cg", **limits)
    return System(
        dense_operator(symmetric_matrix(torch.logspace(0, 3, 60))), block(60, 3), rtol=1e-9, run=run
    )


def interrupt(state):
    if state.iteration == 4:
        raise KeyboardInterrupt


def test_it_can_be_stopped_in_every_way():
    for limits, status, iterations in [
        ({"max_products": 15}, Status.MAX_PRODUCTS, 4),
        ({"max_seconds": 1e-9}, Status.MAX_SECONDS, 1),
        ({"callback": lambda state: state.iteration == 4}, Status.STOPPED, 4),
        ({"callback": interrupt}, Status.INTERRUPTED, 4),
    ]:
        solution = block_cg(long_system(**limits))
        assert (solution.status, solution.converged) == (status, False)
        assert solution.iterations == iterations


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr("hesse.checkpoint._PAUSE", 0)

    def kill(state):
        if state.iteration == 20:
            raise RuntimeError("killed")

    whole = block_cg(long_system())
    system = long_system(callback=kill)
    system.checkpoint = Checkpoint(tmp_path / "run", system.A, method="block_cg")
    with pytest.raises(RuntimeError, match="killed"):
        block_cg(system)
    seen = []
    again = long_system(callback=lambda state: seen.append(state.iteration))
    again.checkpoint = system.checkpoint
    resumed = block_cg(again)
    assert seen[0] == 20  # 19 steps were saved
    assert torch.equal(resumed.x, whole.x)
    assert (resumed.products, resumed.history) == (whole.products, whole.history)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(("k", "vectors"), [(2, 17), (4, 32), (8, 64)])
def test_memory_is_eight_blocks(k, vectors):
    n = 20_000
    A = diagonal_operator(torch.linspace(1, 100, n, dtype=DOUBLE))
    system = System(A, block(n, k), rtol=1e-6)
    with PeakMemory() as memory:
        assert block_cg(system).converged
    assert memory.peak == pytest.approx(vectors * 8 * n, rel=0.01)


def test_what_it_cannot_solve_is_refused():
    with pytest.raises(OperatorError, match="symmetric"):
        block_cg(System(dense_operator(torch.tensor([[1.0, 2.0], [0.0, 1.0]])), torch.ones(2, 2)))
    ones = diagonal_operator(torch.ones(2))
    with pytest.raises(OperatorError, match="positive definite"):
        block_cg(System(ones, torch.eye(2), preconditioner=-1.0 * ones))
