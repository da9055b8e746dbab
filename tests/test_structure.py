# SPDX-License-Identifier: Apache-2.0
"""What structure knows of a matrix is right, and solvers and estimators take no product for it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

import hesse
from hesse.errors import OperatorError
from hesse.operators.algebra import LinearOperator
from hesse.operators.dense import dense_operator
from hesse.operators.rotated_diagonal import RotatedDiagonal
from hesse.testing import check_operator

DOUBLE = torch.float64


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=DOUBLE)


def definite(n: int, seed: int = 0) -> torch.Tensor:
    M = normal(n, n, seed=seed)
    return M @ M.T + torch.eye(n, dtype=DOUBLE)


def indefinite(n: int, seed: int = 0) -> torch.Tensor:
    M = normal(n, n, seed=seed)
    return M + M.T


def kronecker(*factors: torch.Tensor) -> LinearOperator:
    first, *rest = factors
    return hesse.kronecker_operator(first, kronecker(*rest) if len(rest) > 1 else rest[0])


def rotated(seed: int) -> LinearOperator:
    P, Q = (torch.linalg.qr(normal(k, k, seed=seed + k)).Q for k in (2, 3))
    w = 1.0 + normal(6, seed=seed).square()
    basis = hesse.kronecker_operator(P, Q)
    return RotatedDiagonal(basis.domain, basis, w)


def low_rank(n: int) -> LinearOperator:
    return hesse.low_rank_operator(normal(n, 2), torch.tensor([2.0, 0.5], dtype=DOUBLE))


def identity(n: int) -> LinearOperator:
    return hesse.identity_operator(n)


D = hesse.diagonal_operator(1.0 + normal(6).square())
BLOCKS = hesse.block_diagonal_operator(
    {"a": definite(2), "b": kronecker(definite(2), indefinite(2)), "c": 3.0 * rotated(1)}
)
SYMMETRIC: dict[str, Callable[[], LinearOperator]] = {
    "diagonal": lambda: D,
    "negative diagonal": lambda: -1.0 * hesse.diagonal_operator(torch.arange(1.0, 4.0).double()),
    "identity": lambda: hesse.identity_operator(5, DOUBLE),
    "block-diagonal": lambda: BLOCKS,
    "block-diagonal + c I": lambda: BLOCKS + 40.0 * identity(12),
    "a block": lambda: BLOCKS.block("b"),
    "kronecker": lambda: kronecker(definite(2), indefinite(3)),
    "kronecker + c I": lambda: kronecker(definite(2), definite(3)) + 0.3 * identity(6),
    "nested kronecker": lambda: kronecker(definite(2), indefinite(2), definite(3)),
    "nested kronecker + c I": lambda: (
        kronecker(definite(2), definite(2), definite(3)) + 0.3 * identity(12)
    ),
    "rotated diagonal": lambda: rotated(0),
    "rotated diagonal + c I": lambda: 2.0 * (rotated(0) + 0.7 * identity(6)),
    "low rank": lambda: low_rank(5),
    "low rank + c I": lambda: low_rank(5) + 0.7 * identity(5),
    "low rank + D": lambda: low_rank(6) - 9.0 * D,
    "kronecker + low rank": lambda: kronecker(definite(2), definite(3)) - 0.1 * low_rank(6),
    "two diagonals": lambda: D @ D,
}
OTHERS: dict[str, Callable[[], LinearOperator]] = {
    "kronecker": lambda: kronecker(normal(2, 2), normal(3, 3)),
    "product": lambda: kronecker(definite(2), definite(3)) @ (rotated(0) + 0.1 * identity(6)),
    "adjoint": lambda: 2.0 * kronecker(normal(2, 2), normal(3, 3)).T,
    "blocks": lambda: hesse.block_diagonal_operator([normal(2, 2), normal(3, 3, seed=1)]),
}
ALL = {**{f"symmetric, {name}": make for name, make in SYMMETRIC.items()}, **OTHERS}


def close(ours: torch.Tensor | float, theirs: torch.Tensor | float, size: float = 1.0) -> None:
    ours, theirs = (torch.as_tensor(x, dtype=DOUBLE) for x in (ours, theirs))
    assert float((ours - theirs).norm()) <= 1e-9 * max(size, float(theirs.norm()))


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_what_is_known_is_that_of_the_matrix(make):
    A = make()
    M = A.to_dense()
    size = float(M.norm())
    known = 0
    if (diagonal := A._diagonal()) is not None:
        close(diagonal, M.diagonal(), size)
        known += 1
    if (trace := A._trace()) is not None:
        close(trace, float(M.trace()), size)
        known += 1
    if (logdet := A._logdet()) is not None:
        sign, log = torch.linalg.slogdet(M)
        if float(log) > -30.0:  # of a singular matrix that of the rounding errors
            close(logdet[0], float(sign))
            close(logdet[1], float(log), size)
        else:
            assert logdet[1] < -30.0
        known += 1
    if (inverse := A._inverse()) is not None:
        close(inverse.to_dense() @ M, torch.eye(len(M), dtype=DOUBLE), float(M.norm()))
        known += 1
    if (squared := A._squared_entries()) is not None:
        close(squared.to_dense(), M**2, size**2)
    assert known >= 2


@pytest.mark.parametrize("make", SYMMETRIC.values(), ids=SYMMETRIC)
def test_the_spectrum_is_that_of_the_matrix(make):
    A = make()
    M = A.to_dense()
    w, Q = torch.linalg.eigh(M)
    if (values := A._eigenvalues()) is not None:
        close(values.sort().values, w, float(M.norm()))
    if (cube := A._function(lambda x: x**3 - 2.0 * x)) is not None:
        check_operator(cube)
        close(cube.to_dense(), Q @ torch.diag(w**3 - 2.0 * w) @ Q.T, float(M.norm()) ** 3)
    if (pair := A._eigen()) is not None:
        basis, values = pair[0].to_dense(), pair[1]
        close(basis.T @ basis, torch.eye(len(M), dtype=DOUBLE))
        close(basis @ torch.diag(values) @ basis.T, M, float(M.norm()))


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_structured_operators_pass_the_conformance_test(make):
    check_operator(make())


def test_eigenvectors_of_a_kronecker_product_are_computed_once(monkeypatch):
    taken = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr("torch.linalg.eigh", lambda M: taken.append(len(M)) or eigh(M))
    A = kronecker(definite(2), definite(3))
    for c in (0.1, 1.0, 10.0):
        (A + c * identity(6))._inverse()
    assert taken == [2, 3]


def test_damping_far_below_the_rounding_error_of_the_largest_eigenvalue_gives_an_inverse():
    """Of eigenvalues d >= 0: d + c is at least c. Where d and c cancel, only their sum is known."""
    P, Q = (torch.linalg.qr(normal(k, k, seed=k)).Q.float() for k in (2, 3))
    basis = hesse.kronecker_operator(P, Q)
    d, c = torch.tensor([1e7, 3.0, 1e-9, 0.0, 2e-4, 5e2], dtype=DOUBLE), 1e-3
    A = RotatedDiagonal(basis.domain, basis, d)
    assert A._inverse() is None
    inverse = (A + c * hesse.identity_operator(6, torch.float32))._inverse()
    R = torch.kron(P, Q).double()
    expected = R @ torch.diag(1.0 / (d + c)) @ R.T
    difference = inverse.to_dense().double() - expected
    assert float(difference.norm()) < 1e-5 * float(expected.norm())
    for below in (1.5e-3, 3e-3):  # w is smaller than c, or as large as c with the other sign
        doubtful = RotatedDiagonal(basis.domain, basis, d - below)
        assert (doubtful + c * hesse.identity_operator(6, torch.float32))._inverse() is None


def test_a_dense_matrix_is_a_trial_of_an_operator():
    assert not dense_operator(definite(3)).is_structured
    assert not (dense_operator(definite(3)) + identity(3)).is_structured


# -- Estimators and solvers ------------------------------------------------------------------------


def is_positive(name: str) -> bool:
    return float(torch.linalg.eigvalsh(SYMMETRIC[name]().to_dense())[0]) > 1e-6


POSITIVE = [name for name in SYMMETRIC if is_positive(name) and "+ low rank" not in name]
ANSWERED = [name for name in SYMMETRIC if SYMMETRIC[name]()._eigenvalues() is not None]


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_trace_and_diagonal_take_no_product(make):
    A = make()
    M = A.to_dense()
    if A._trace() is None:
        pytest.skip("its structure does not give the trace")
    estimate = hesse.trace(A)
    assert (estimate.products, estimate.standard_error) == (0, 0.0)
    close(estimate.value, float(M.trace()), float(M.norm()))
    low, high = estimate.interval
    assert low <= float(M.trace()) <= high
    if A._diagonal() is not None:
        diagonal = hesse.diagonal(A)
        assert diagonal.products == 0
        close(diagonal.value, M.diagonal(), float(M.norm()))


@pytest.mark.parametrize("name", POSITIVE)
def test_the_determinant_takes_no_product(name):
    A = SYMMETRIC[name]()
    estimate = hesse.logdet(A)
    assert estimate.products == 0
    assert estimate.value == pytest.approx(float(torch.logdet(A.to_dense())), rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("A", [low_rank(5), -1.0 * identity(4), low_rank(6) - 1.0 * identity(6)])
def test_a_matrix_that_is_not_definite_has_no_log_determinant(A):
    A = A._in_space(hesse.identity_operator(A.shape[0], DOUBLE).domain)
    with pytest.raises(OperatorError, match="positive definite"):
        hesse.logdet(A)


@pytest.mark.parametrize("name", ANSWERED)
def test_norms_counts_and_densities_take_no_product(name):
    A = SYMMETRIC[name]()
    M = A.to_dense()
    w = torch.linalg.eigvalsh(M)
    for order in ("fro", 2):
        estimate = hesse.norm(A, order)
        assert estimate.products == 0
        close(estimate.value, float(torch.linalg.matrix_norm(M, order)))
    middle = float(w[0] + w[-1]) / 2 + 1e-3
    count = hesse.count_eigenvalues(A, high=middle)
    assert (count.value, count.products) == (float((w < middle).sum()), 0)
    density = hesse.spectral_density(A)
    assert density.products == 0
    assert density.moment(1) == pytest.approx(float(w.mean()), rel=1e-8, abs=1e-8 * float(M.norm()))


@pytest.mark.parametrize("name", POSITIVE)
def test_functions_and_samples_take_no_product(name):
    A = SYMMETRIC[name]()
    M, n = A.to_dense(), A.shape[0]
    if A._function(torch.exp) is None:
        pytest.skip("its structure does not give functions")
    w, Q = torch.linalg.eigh(M)
    block = normal(n, 2)
    root = hesse.matrix_function("sqrt", A, A.domain.unflatten(block[:, 0]))
    assert root.products == 0
    close(A.domain.flatten(root.value), Q @ (w.sqrt() * (Q.T @ block[:, 0])))
    close(hesse.matrix_function("exp", A / 10.0, block).value, torch.matrix_exp(M / 10.0) @ block)
    draws = hesse.sample_normal(A, 2, generator=torch.Generator().manual_seed(0))
    z = torch.stack(
        [A.domain.gaussian(g) for g in [torch.Generator().manual_seed(0)] for _ in "ab"]
    )
    assert draws.products == 0
    close(draws.value, Q @ (w.rsqrt()[:, None] * (Q.T @ z.T)))


def test_a_function_outside_its_domain_names_the_eigenvalue():
    with pytest.raises(OperatorError, match="-1"):
        hesse.matrix_function(
            "log", hesse.diagonal_operator(torch.tensor([-1.0, 2.0])), torch.ones(2)
        )


@pytest.mark.parametrize("name", ["kronecker + c I", "block-diagonal", "kronecker + low rank"])
def test_systems_are_solved_directly(name):
    A = SYMMETRIC[name]()
    b = normal(A.shape[0])
    solution = hesse.solve(A, b)
    close(A.to_dense() @ solution.x, b)
    assert solution.method == "direct"
    assert solution.products <= 1


def test_a_large_kronecker_product_with_low_rank_added():
    U = normal(3600, 4) / 60.0
    A = kronecker(definite(60), definite(60)) + hesse.low_rank_operator(U, torch.ones(4).double())
    b = normal(3600)
    solution = hesse.solve(A, b)
    assert solution.method == "direct"
    assert float((A @ solution.x - b).norm()) <= 1e-8 * float(b.norm())
    assert hesse.trace(A).products == 0
    B = kronecker(definite(60), definite(60)) + 0.5 * identity(3600)
    assert hesse.logdet(B).products == 0
    w, v = torch.linalg.eigvalsh(definite(60)), torch.linalg.eigvalsh(definite(60))
    expected = math.fsum((torch.kron(w, v) + 0.5).log().tolist())
    assert hesse.logdet(B).value == pytest.approx(expected, rel=1e-12)
