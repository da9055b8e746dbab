# SPDX-License-Identifier: Apache-2.0
"""One table: every method, kind of operator, dtype and form of b, against a dense oracle."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from hesse.errors import ArgumentError, HesseError, OperatorError, ShapeError, Status
from hesse.krylov import CG, GMRES, LSMR, MultiShiftCG, solve
from hesse.krylov.method import Method
from hesse.krylov.system import SolverState, after_step, iterate, repeat, solution_of
from hesse.operators import (
    dense_operator,
    diagonal_operator,
    function_operator,
    identity_operator,
)
from hesse.testing import CountingOperator, symmetric_matrix
from tests.linear_systems import DEFINITE, DOUBLE, INDEFINITE, N, hidden, kinds, normal, seeded


@pytest.mark.some_cases(140)
@pytest.mark.fast_cases(60)
@pytest.mark.parametrize("columns", [0, 1, 3])
@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
@pytest.mark.parametrize("kind", list(kinds(DOUBLE)))
@pytest.mark.parametrize(
    "method", ["auto", "cg", "block-cg", "minres", "lsmr", "gmres", MultiShiftCG([0.5])], ids=str
)
def test_every_method_on_every_kind_of_operator(method, kind, dtype, columns):
    A = CountingOperator(kinds(dtype)[kind])
    b = normal(N, seed=2, dtype=dtype) if columns == 0 else normal(N, columns, seed=2, dtype=dtype)
    if method == "block-cg" and columns == 0:
        b = b[:, None]
    shift = 0.5 if isinstance(method, MultiShiftCG) else 0.0
    if shift and columns:
        return
    rtol = 1e-9 if dtype == DOUBLE else 1e-4
    solution = solve(A, b, method, rtol=rtol)
    dense = kinds(DOUBLE)[kind].to_dense() + shift * torch.eye(N, dtype=DOUBLE)
    assert solution.converged, solution.status
    assert solution.products == A.products
    assert solution.x.dtype == dtype
    x = solution.x.double().reshape(N, -1)
    residual = (b.double().reshape(N, -1) - dense @ x).norm(dim=0)
    slack = 1 + 1e-2 * (dtype == torch.float32)  # the oracle's dense matrix was rounded as well
    assert (residual <= slack * rtol * b.double().reshape(N, -1).norm(dim=0)).all()


@pytest.mark.parametrize(
    "kind", [k for k in kinds(DOUBLE) if k not in ("hidden", "function", "hessian", "gram")]
)
@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
def test_structure_gives_an_exact_solution_in_one_look(kind, dtype):
    A = kinds(dtype)[kind]
    b = normal(N, seed=3, dtype=dtype)
    for method in ("direct", "auto"):
        solution = solve(A, b, method)
        assert (solution.method, solution.converged) == ("direct", True)
        assert (solution.products, solution.iterations) == (1, 1)
    block = solve(A, normal(N, 2, seed=3, dtype=dtype))
    assert (block.method, block.converged, block.products) == ("direct", True, 2)


@dataclass
class Case:
    """A system that is special, and the methods that are for it."""

    M: torch.Tensor
    b: torch.Tensor
    methods: tuple[str, ...] = ("minres", "gmres", "lsmr", "auto")


SINGULAR = torch.cat([torch.zeros(3), DEFINITE[3:]])
POSITIVE = symmetric_matrix(DEFINITE)
CASES = {
    "n = 1": Case(torch.tensor([[2.0]]), torch.tensor([3.0]), ("cg", "minres", "gmres", "lsmr")),
    "indefinite": Case(symmetric_matrix(INDEFINITE), normal(N, seed=4)),
    "repeated": Case(symmetric_matrix([1.0] * 8 + [5.0] * 16), normal(N, seed=5),
                     ("cg", "minres", "gmres")),
    "singular consistent": Case(symmetric_matrix(SINGULAR),
                                symmetric_matrix(SINGULAR) @ normal(N, seed=6)),
    "eigenvector": Case(POSITIVE, torch.linalg.eigh(POSITIVE)[1][:, 3],
                        ("cg", "minres", "gmres", "lsmr")),
    "not symmetric": Case(POSITIVE + 0.3 * normal(N, N, seed=7), normal(N, seed=8),
                          ("gmres", "lsmr", "auto")),
    "tall": Case(normal(N, 9, seed=9), normal(N, 9, seed=9).sum(dim=1), ("lsmr", "auto")),
    "wide": Case(normal(9, N, seed=9), torch.ones(9, dtype=DOUBLE), ("lsmr", "auto")),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "method"), [(name, method) for name, case in CASES.items() for method in case.methods]
)
def test_special_systems(name, method):
    case = CASES[name]
    M, b = case.M.double(), case.b.double()
    symmetric = M.shape[0] == M.shape[1] and torch.equal(M, M.T)
    A = CountingOperator(hidden(M, symmetric=symmetric))
    solution = solve(A, b, method, rtol=1e-9)
    assert solution.converged, solution.status
    assert solution.products == A.products
    assert float((b - M @ solution.x).norm()) <= 1e-9 * float(b.norm())
    if name in ("singular consistent", "wide") and method in ("minres", "lsmr"):
        torch.testing.assert_close(solution.x, torch.linalg.pinv(M, rtol=1e-10) @ b)
    if name == "repeated":
        assert solution.iterations == 2
    if name == "eigenvector":
        assert solution.iterations == 1


@pytest.mark.parametrize("method", ["minres", "lsmr"])
def test_an_inconsistent_system_gets_the_least_squares_solution_and_is_called_that(method):
    M, b = symmetric_matrix(SINGULAR), normal(N, seed=10)
    solution = solve(hidden(M, symmetric=True), b, method, rtol=1e-10)
    assert solution.status is Status.LEAST_SQUARES
    assert solution.converged == (method == "lsmr")  # whose question it was
    torch.testing.assert_close(solution.x, torch.linalg.pinv(M, rtol=1e-10) @ b, rtol=0, atol=1e-7)


@pytest.mark.parametrize("method", ["cg", "minres", "gmres", "lsmr", "block-cg", "auto"])
def test_nothing_wrong_is_said_at_a_condition_of_1e12(method):
    M, b = symmetric_matrix(torch.logspace(-12, 0, N)), normal(N, seed=11)
    b = b[:, None] if method == "block-cg" else b
    solution = solve(hidden(M, symmetric=True), b, method, rtol=1e-8, max_iterations=300)
    residual = float((b - M @ solution.x).norm())
    assert solution.residual_norm == pytest.approx(residual, rel=1e-3)
    if solution.status is not Status.LEAST_SQUARES:  # which A'r decides
        assert solution.converged == (residual <= 1e-8 * float(b.norm()))
    assert solution.converged or solution.status.name in (
        "STAGNATED", "MAX_ITERATIONS", "NEGATIVE_CURVATURE", "LEAST_SQUARES",
    )  # fmt: skip


@pytest.mark.slow
def test_indefinite_systems_never_get_a_wrong_converged():
    for seed in range(100):
        n = 5 + seed % 40
        values = normal(n, seed=seed)
        M = symmetric_matrix(10.0 ** (seed % 7 - 3) * values, seed)
        b = normal(n, seed=seed + 1)
        for method in ("cg", "minres", "auto"):
            solution = solve(hidden(M, symmetric=True), b, method, rtol=1e-7)
            residual = float((b - M @ solution.x).norm())
            assert solution.converged == (residual <= 1e-7 * float(b.norm()))
            if method == "cg" and not solution.converged:
                assert solution.status is Status.NEGATIVE_CURVATURE
            if solution.direction is not None:
                p = solution.direction
                assert float(p @ M @ p) <= 1e-12 * float(p @ p) * float(values.abs().max()) * 1e4


@pytest.mark.parametrize(("n", "zeros"), [(12, 4), (40, 3), (100, 1), (60, 10)])
def test_auto_minimises_where_a_singular_system_has_no_solution(n, zeros):
    """Conjugate gradients run away along the null space, where only rounding curves."""
    M = symmetric_matrix(torch.cat([torch.zeros(zeros), torch.linspace(1.0, 30.0, n - zeros)]))
    A = CountingOperator(hidden(M, symmetric=True))
    B = torch.stack([normal(n, seed=2), M @ normal(n, seed=1), 0 * normal(n, seed=3)], dim=1)
    for b in (B[:, 0], B):
        solution = solve(A, b, rtol=1e-8)
        assert (solution.method, solution.status) == ("minres", Status.LEAST_SQUARES)
        residual = b - M @ solution.x
        assert (M @ residual).norm() <= 1e-6 * float(M.norm()) * residual.norm()
        assert residual.norm() <= b.norm()
    assert torch.linalg.vector_norm(B[:, 1] - M @ solution.x[:, 1]) <= 1e-7 * B[:, 1].norm()


def test_auto_keeps_to_the_iterations_that_are_allowed():
    M = symmetric_matrix(torch.cat([torch.zeros(1), torch.linspace(1.0, 30.0, 99)]))
    solution = solve(hidden(M, symmetric=True), normal(100, seed=1), max_iterations=200)
    assert (solution.method, solution.iterations) == ("cg", 200)


def test_a_method_that_needs_an_inverse_names_the_operator_without_one():
    A = hidden(symmetric_matrix(DEFINITE), symmetric=True)
    with pytest.raises(OperatorError, match=r"got: +FunctionOperator\(.*\), which has none"):
        solve(A, normal(N, seed=1), "direct")


def test_auto_goes_on_with_minres_where_curvature_is_negative():
    M, b = symmetric_matrix(INDEFINITE), normal(N, seed=12)
    A = CountingOperator(hidden(M, symmetric=True))
    solution = solve(A, b, rtol=1e-10)
    assert (solution.method, solution.converged) == ("minres", True)
    assert solution.products == A.products
    assert float(solution.direction @ M @ solution.direction) < 0.0
    alone = solve(A, b, "cg")
    assert alone.status is Status.NEGATIVE_CURVATURE
    assert not alone.converged


@pytest.mark.parametrize("name", ["jacobi", "block-jacobi", "nystrom", "pivoted-cholesky"])
def test_a_preconditioner_by_its_name(name):
    n = 60
    M, b = symmetric_matrix(torch.logspace(3, -6, n)), normal(n, seed=16)
    A = (dense_operator(M) if name == "pivoted-cholesky" else hidden(M, symmetric=True)) + (
        1e-2 * identity_operator(n)
    )
    counting = CountingOperator(A)
    plain = solve(A, b, "cg", rtol=1e-8)
    solution = solve(A, b, "cg", name, rtol=1e-8, generator=seeded())
    assert solution.converged
    assert float((b - A @ solution.x).norm()) <= 1e-8 * float(b.norm())
    if name in ("nystrom", "pivoted-cholesky"):
        assert solution.iterations < plain.iterations / 2
    if name in ("jacobi", "block-jacobi"):  # whose cost is counted where nothing is known of A
        assert solve(counting, b, "cg", name, generator=seeded()).products == counting.products


@pytest.mark.parametrize("method", ["cg", "minres", "gmres", "lsmr", "block-cg"])
def test_zero_takes_no_product_and_a_nan_is_said(method):
    A = CountingOperator(hidden(symmetric_matrix(DEFINITE), symmetric=True))
    b = torch.zeros(N, 1, dtype=DOUBLE) if method == "block-cg" else torch.zeros(N, dtype=DOUBLE)
    solution = solve(A, b, method)
    assert (solution.converged, A.products, float(solution.x.norm())) == (True, 0, 0.0)

    calls = []

    def broken(v):
        calls.append(1)
        return v * (math.nan if len(calls) > 2 else 1.0) * torch.linspace(1, 2, N, dtype=DOUBLE)

    bad = function_operator(broken, N, symmetric=True, rmatvec=broken, dtype=DOUBLE)
    solution = solve(bad, b + 1.0, method, rtol=1e-12)
    assert solution.status is Status.NOT_FINITE
    assert not solution.converged
    assert torch.isfinite(solution.x).all()


@pytest.mark.parametrize("method", ["cg", "minres", "block-cg", MultiShiftCG([1.0])], ids=str)
def test_an_operator_that_is_not_symmetric_is_refused(method):
    A = dense_operator(normal(5, 5))
    b = torch.ones(5, 1, dtype=DOUBLE) if method == "block-cg" else torch.ones(5, dtype=DOUBLE)
    with pytest.raises(OperatorError, match="symmetric"):
        solve(A, b, method)


@pytest.mark.parametrize("method", ["cg", "minres", "gmres", "lsmr"])
def test_limits_callback_and_ctrl_c(method):
    A = CountingOperator(hidden(symmetric_matrix(torch.logspace(-6, 0, N)), symmetric=True))
    b = normal(N, seed=17)
    solution = solve(A, b, method, rtol=1e-12, max_products=12)
    assert solution.status is Status.MAX_PRODUCTS
    assert solution.products == A.products <= 12
    assert solve(A, b, method, rtol=1e-12, max_seconds=1e-9).status is Status.MAX_SECONDS
    stopped = solve(A, b, method, rtol=1e-12, callback=lambda state: state.iteration == 3)
    assert (stopped.status, stopped.iterations) == (Status.STOPPED, 3)

    def interrupt(state):
        if state.iteration == 4:
            raise KeyboardInterrupt

    solution = solve(A, b, method, rtol=1e-12, callback=interrupt)
    assert (solution.status, solution.iterations) == (Status.INTERRUPTED, 4)


def test_a_tree_a_warm_start_and_a_block_come_back_in_their_form():
    d = {"w": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([4.0])}
    A = diagonal_operator(d)
    b = {"w": torch.ones(1, 2), "b": torch.ones(1)}
    solution = solve(A, b, "cg", x0={"w": torch.zeros(1, 2), "b": torch.tensor([0.25])})
    torch.testing.assert_close(solution.x, {k: 1 / v for k, v in d.items()})
    block = solve(A, torch.eye(3), "cg")
    torch.testing.assert_close(block.x, torch.diag(torch.tensor([1.0, 0.5, 0.25])))
    assert block.residual_norms.shape == (3,)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"method": "multi-shift-cg"}, ArgumentError),
        ({"method": MultiShiftCG([1.0]), "x0": torch.ones(N, dtype=DOUBLE)}, ArgumentError),
        ({"method": LSMR(), "preconditioner": "jacobi"}, ArgumentError),
        ({"method": CG}, ArgumentError),
        ({"method": "direct"}, OperatorError),
        ({"max_products": 0}, ArgumentError),
        ({"preconditioner": "ilu"}, ArgumentError),
        ({"x0": torch.ones(3)}, HesseError),
        ({"b": torch.ones(N, 0, dtype=DOUBLE)}, ShapeError),
    ],
)
def test_what_cannot_be_is_refused(arguments, error):
    A = hidden(symmetric_matrix(DEFINITE), symmetric=True)
    arguments = {"b": torch.ones(N, dtype=DOUBLE), **arguments}
    with pytest.raises(error, match="remedy"):
        solve(A, **arguments)


def test_block_cg_takes_a_vector():
    A = function_operator(lambda v: 2 * v, 6, symmetric=True)
    solution = solve(A, torch.ones(6), "block-cg")
    assert solution.x.shape == (6,)
    torch.testing.assert_close(solution.x, torch.full((6,), 0.5))


def test_an_error_says_the_call_and_what_to_give():
    with pytest.raises(
        ArgumentError, match=r"Give method=MultiShiftCG\(\[s1, s2, ...\]\)"
    ) as error:
        solve(torch.eye(3), torch.ones(3), "multi-shift-cg")
    assert error.value.call == "hesse.solve(Tensor(3, 3), b, method='multi-shift-cg')"
    with pytest.raises(ArgumentError, match="Did you mean 'gmres'"):
        solve(torch.eye(3), torch.ones(3), "gmrs")
    with pytest.raises(ArgumentError) as error:
        GMRES(restart=0)
    assert error.value.call == "hesse.GMRES(...)"


def test_arrays_come_back_as_arrays():
    A = diagonal_operator(torch.tensor([1.0, 2.0]))
    for b in (np.ones(2, dtype="float32"), np.ones((2, 3), dtype="float32")):
        x = solve(A, b).x
        assert isinstance(x, np.ndarray)
        assert x.shape == b.shape


def test_a_method_of_ones_own():
    class Jacobi(Method):
        name = "jacobi"

        def _solve(self, system):
            d = system.A._diagonal()
            state = system.start(SolverState)

            def step():
                state.x += state.residual / d
                state.recompute(system)
                state.iteration += 1
                return after_step(system, state)

            iterate(system, state, lambda: repeat(system, state, step))
            return solution_of(state, self.name)

    M = 4.0 * torch.eye(N, dtype=DOUBLE) + 0.1 * symmetric_matrix(DEFINITE)
    solution = solve(M, normal(N, 2, seed=18), Jacobi())
    assert (solution.method, solution.converged) == ("jacobi", True)


def test_the_status_of_a_block_is_the_least_favourable():
    N = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    B = torch.tensor([[1.0, 1.0], [1.0, 0.0]])  # the first column has no solution
    assert solve(N, B, "lsmr").status is Status.LEAST_SQUARES


def test_a_column_that_was_not_begun_counts_with_its_residual():
    A = function_operator(lambda v: torch.arange(1.0, 51.0) * v, 50)
    B = torch.stack([torch.ones(50), 100 * torch.ones(50)], dim=1)
    solution = solve(A, B, "gmres", max_products=12)
    assert solution.residual_norm == pytest.approx(float(B[:, 1].norm()))
