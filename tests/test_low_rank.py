# SPDX-License-Identifier: Apache-2.0
"""Matrices of low rank, plus a diagonal, against their dense form; where they come from."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hesse
from hesse.errors import ArgumentError, HesseError, OperatorError
from hesse.krylov.nystrom import eigenpairs_of_sketch, sketch
from hesse.operators import LinearOperator
from hesse.testing import CountingOperator, check_operator
from tests.structured_matrices import DOUBLE, I, N, close, definite, factors, normal, seeded

EPS = torch.finfo(torch.float64).eps


def rotated(values: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A matrix with these eigenvalues."""
    Q = torch.linalg.qr(normal(len(values), len(values), seed=seed)).Q
    M = (Q * values) @ Q.T
    return (M + M.T) / 2


# -- Low rank plus a multiple of the identity, or a diagonal ---------------------------------------


def damped(seed: int, r: int, kind: str, spread: float = 1.0, c: float = 0.5) -> LinearOperator:
    A = hesse.low_rank_operator(*factors(seed, r, spread))
    if kind == "c I":
        return A + c * I
    return A + hesse.diagonal_operator(c * (1.0 + normal(N, seed=seed + 1).square()))


seeds, ranks = st.integers(0, 10**6), st.integers(0, N + 2)
kinds = st.sampled_from(["c I", "D"])


@given(seeds, ranks, kinds, st.floats(0.0, 6.0), st.floats(1e-3, 1e3))
def test_a_damped_matrix_of_low_rank_takes_no_products(seed, r, kind, spread, c):
    A = damped(seed, r, kind, spread, c)
    M = A.to_dense()
    w, rounding = torch.linalg.eigvalsh(M), 1e2 * EPS * float(torch.linalg.cond(M))
    answers = hesse.trace(A), hesse.diagonal(A), hesse.logdet(A)
    for estimate, exact in zip(answers, (M.trace(), M.diagonal(), torch.logdet(M)), strict=True):
        assert estimate.products == 0
        close(torch.as_tensor(estimate.value, dtype=DOUBLE), exact, max(1e-12, rounding))
    inverse = hesse.inverse_operator(A)
    # The largest eigenvalues of the inverse are those of the diagonal: eps |A| / min d.
    close(inverse.to_dense() @ M, torch.eye(N, dtype=DOUBLE), max(1e-12, rounding))
    assert inverse.symmetric
    if kind == "c I":
        close(A._eigenvalues().sort().values, w, 1e-12)


@given(seeds, ranks, kinds, st.floats(0.0, 12.0), st.floats(1e-6, 1.0))
def test_the_error_of_an_inverse_is_that_of_inverting_the_diagonal(seed, r, kind, spread, c):
    A = damped(seed, r, kind, spread, c)
    M, smallest = A.to_dense(), float(A._whole().d.min())
    inverse = A._inverse()
    bound = 1e2 * EPS * (1.0 + float(torch.linalg.matrix_norm(M, 2)) / smallest)
    if inverse is None:  # nothing is known of the smallest eigenvalues
        assert bound > 1e-3
        return
    # Eigenvalues of the inverse, which are not larger than 1 / c, hence its error.
    w, Q = torch.linalg.eigh(M)
    exact = (Q / w.clamp(min=smallest)) @ Q.T
    assert float((inverse.to_dense() - exact).norm()) <= bound * float(exact.norm())


@given(seeds, st.integers(1, N), st.floats(-3.0, 3.0))
def test_signs_of_eigenvalues_are_counted(seed, r, shift):
    A = hesse.low_rank_operator(normal(N, r, seed=seed), normal(r, seed=seed + 1))
    for D in (shift * I, hesse.diagonal_operator(normal(N, seed=seed + 2))):
        whole = A + D
        w = torch.linalg.eigvalsh(whole.to_dense())
        if float(w.abs().min()) > 1e-9 and whole._num_negative() is not None:
            assert whole._num_negative() == int((w < 0.0).sum())


@given(seeds, st.integers(0, N + 1), kinds, st.sampled_from(["covariance", "precision"]))
def test_samples_have_the_covariance(seed, r, kind, role):
    A = damped(seed, r, kind)
    M = A.to_dense()
    covariance = M if role == "covariance" else torch.linalg.inv(M)
    draws = hesse.sample_normal(A, N, role=role, generator=seeded(seed))
    assert draws.products == 0
    z = torch.stack([A.domain.gaussian(g) for g in [seeded(seed)] for _ in range(N)], 1)
    R = draws.value @ torch.linalg.inv(z)  # the draws are R z
    close(R @ R.T, covariance, 1e-8)


def test_an_indefinite_matrix_has_no_samples():
    A = hesse.low_rank_operator(normal(N, 1), -torch.ones(1, dtype=DOUBLE))
    for D in (0.01 * I, hesse.diagonal_operator(torch.linspace(0.01, 0.02, N, dtype=DOUBLE))):
        with pytest.raises(OperatorError, match="positive"):
            hesse.sample_normal(A + D, generator=seeded())


@given(seeds, st.integers(1, N), st.floats(0.1, 10.0))
def test_functions_of_a_damped_matrix_take_no_products(seed, r, c):
    A, b = damped(seed, r, "c I", c=c), normal(N, seed=seed + 2)
    w, Q = torch.linalg.eigh(A.to_dense())
    for name, f in (("sqrt", w.sqrt()), ("log", w.log()), ("inverse", 1.0 / w)):
        found = hesse.matrix_function(name, A, b)
        assert found.products == 0
        close(found.value, Q @ (f * (Q.T @ b)), 1e-9)


def test_a_full_set_of_columns_is_asked_at_its_eigenvalues_alone():
    A = hesse.low_rank_operator(normal(N, N), torch.ones(N, dtype=DOUBLE))
    w, Q = torch.linalg.eigh(A.to_dense())
    close(hesse.matrix_function("log", A, normal(N)).value, Q @ (w.log() * (Q.T @ normal(N))), 1e-8)
    assert hesse.logdet(A).value == pytest.approx(float(w.log().sum()), rel=1e-10)
    assert hesse.logdet(A).products == 0


def test_one_decomposition_serves_every_damping(monkeypatch):
    taken = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr("torch.linalg.eigh", lambda M: taken.append(len(M)) or eigh(M))
    A = hesse.low_rank_operator(*factors(0, 3))
    for c in (0.1, 1.0, 10.0):
        hesse.solve(A + c * I, normal(N))
        hesse.logdet(A + c * I)
        hesse.sample_normal(A + c * I)
    assert taken.count(3) <= 1 + 3 * 2  # a root for each damping is of another matrix


def test_a_block_of_named_leaves():
    tree = {"a": normal(3).square() + 1.0, "b": normal(5).square() + 1.0}
    for D in (I, hesse.diagonal_operator(tree)):
        A = hesse.low_rank_operator(*factors(0, 3)) + 0.0 * hesse.diagonal_operator(tree) + D
        block = A.block("b")
        close(block.to_dense(), A.to_dense()[3:, 3:])
        assert hesse.logdet(block).products == 0


def test_the_factors_are_copied():
    U, s = factors(0, 2)
    A = hesse.low_rank_operator(U, s)
    before = A.to_dense()
    U.zero_(), s.zero_()
    assert torch.equal(A.to_dense(), before)


# -- From eigenpairs and singular triplets ---------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_eigenpairs_make_an_operator_on_the_same_trees(dtype):
    D = hesse.diagonal_operator(
        {"a": torch.arange(1.0, 4.0).to(dtype), "b": torch.ones(5).to(dtype)}
    )
    pairs = hesse.eigsh(D, 3, generator=seeded())
    A = hesse.low_rank_operator(pairs)
    assert (A.domain, A.dtype, A.symmetric) == (D.domain, dtype, True)
    expected = (pairs.vectors.double() * pairs.values) @ pairs.vectors.double().T
    close(A.to_dense(), expected, 1e-6 if dtype is torch.float32 else 1e-14)
    check_operator(A)
    tree = D.domain.unflatten(torch.ones(8, dtype=dtype))
    whole = A + 2.0 * hesse.identity_operator(8)
    solution = hesse.solve(whole, tree)
    assert (solution.method, solution.x.keys()) == ("direct", tree.keys())
    assert hesse.low_rank_operator(pickle.loads(pickle.dumps(pairs))).domain == D.domain


def test_singular_triplets_make_the_nearest_matrix_of_their_rank():
    M = normal(6, 9)
    J = hesse.dense_operator(M)
    A = hesse.low_rank_operator(hesse.svds(J, 3, rtol=1e-12, generator=seeded()))
    U, S, Vh = torch.linalg.svd(M)
    close(A.to_dense(), U[:, :3] @ torch.diag(S[:3]) @ Vh[:3])
    check_operator(A)
    wide = hesse.low_rank_operator(*torch.svd_lowrank(M, 6))
    close(wide.to_dense(), M)
    close(wide.T.to_dense(), M.T)


def test_a_square_matrix_that_is_not_symmetric_knows_its_trace():
    U, V, s = normal(N, 3), normal(N, 3, seed=1), normal(3, seed=2)
    A = hesse.low_rank_operator(U, s, V)
    check_operator(A)
    M = U @ torch.diag(s) @ V.T
    assert hesse.trace(A).products == 0
    assert hesse.trace(A).value == pytest.approx(float(M.trace()), rel=1e-12)
    assert torch.allclose(hesse.diagonal(A).value, M.diagonal())


def test_eigenvectors_of_a_generalised_problem_are_refused():
    pairs = hesse.eigsh(definite(), 2, B=10.0 * definite(seed=1), generator=seeded())
    with pytest.raises(ArgumentError, match="orthonormal") as caught:
        hesse.low_rank_operator(pairs)
    assert "B @ V" in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.ones(3, 2),),
        (hesse.Space.flat(3), torch.ones(2)),
        (torch.ones(3, 2), torch.ones(2), torch.ones(4, 3)),
        (torch.ones(3, 2), torch.ones(2), torch.ones(4)),
        (torch.ones(3, 2), torch.ones(2), torch.ones(4, 2).double()),
        (hesse.trace(torch.eye(3)),),
        (hesse.eigsh(torch.eye(3), 1), torch.ones(1)),
    ],
)
def test_what_makes_no_matrix_of_low_rank_is_refused(arguments):
    with pytest.raises(HesseError) as caught:
        hesse.low_rank_operator(*arguments)
    assert "hesse.low_rank_operator" in str(caught.value)


# -- Nystrom ---------------------------------------------------------------------------------------


@given(seeds, st.integers(1, 5), st.integers(0, 3))
def test_nystrom_finds_a_matrix_of_no_larger_rank(seed, r, more):
    U = normal(N, r, seed=seed)
    A = CountingOperator(hesse.dense_operator(U @ U.T))
    found = hesse.nystrom_operator(A, r, sketch_size=r + more, generator=seeded(seed))
    assert A.products == r + more
    close(found.to_dense(), U @ U.T, 1e-6)  # half of the digits of the small eigenvalues
    check_operator(found)


@given(seeds, st.integers(1, N))
def test_nystrom_is_never_larger_than_the_matrix_and_grows_with_the_sketch(seed, r):
    M = definite(seed=seed)
    tolerance = 1e-9 * float(torch.linalg.matrix_norm(M, 2))
    found = hesse.nystrom_operator(M, r, generator=seeded(seed)).to_dense()
    assert float(torch.linalg.eigvalsh(M - found)[0]) >= -tolerance
    assert float(torch.linalg.eigvalsh(found)[0]) >= -tolerance
    # The best part of a larger sketch is not worse than that of its first directions.
    more = hesse.nystrom_operator(M, r, sketch_size=N, generator=seeded(seed)).to_dense()
    w, Q = torch.linalg.eigh(M)
    close(more, (Q[:, N - r :] * w[N - r :]) @ Q[:, N - r :].T, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_nystrom_of_eigenvalues_that_fall_below_the_rounding_errors(dtype):
    values = torch.logspace(0.0, -30.0, 40, dtype=DOUBLE)
    M = rotated(values)
    r, eps = 10, torch.finfo(dtype).eps
    A = hesse.nystrom_operator(M.to(dtype), r, sketch_size=2 * r + 1, generator=seeded())
    error = M - A.to_dense().double()
    bound = 10.0 * (2.0 * float(values[r:].sum()) + 40.0 * eps)
    assert float(torch.linalg.matrix_norm(error, "nuc")) <= bound
    whole = A + 1e-3 * hesse.identity_operator(40)
    exact = torch.linalg.inv(M + 1e-3 * torch.eye(40, dtype=DOUBLE))
    close(whole._inverse().to_dense(), exact, 1e4 * eps + 1e3 * bound)
    assert hesse.logdet(whole).value == pytest.approx(
        float((values + 1e-3).log().sum()), abs=1e3 * bound
    )


def test_the_mean_error_of_nystrom_is_the_one_it_says():
    values, r = torch.logspace(0.0, -2.0, 30, dtype=DOUBLE), 5
    M = rotated(values)
    errors = []
    for seed in range(200):
        A = hesse.nystrom_operator(M, r, sketch_size=2 * r + 1, generator=seeded(seed))
        errors.append(float(M.trace()) - hesse.trace(A).value)  # of a positive difference
    mean, tail = sum(errors) / len(errors), float(values[r:].sum())
    assert tail <= mean <= 2.0 * tail


def test_a_sketch_of_all_directions_gives_the_positive_part_of_an_indefinite_matrix():
    values = torch.tensor([-3.0, -1.0, -1e-3, 0.0, 1e-2, 1.0, 2.0, 5.0]).double()
    M = rotated(values)
    A = hesse.dense_operator(M)
    pairs = sketch(A, N, seeded())
    U, found = eigenpairs_of_sketch(A.domain, *pairs, may_be_indefinite=True)
    close((U * found) @ U.T, rotated(values.clamp(min=0.0)), rtol=1e-12)
    with pytest.raises(OperatorError, match="semi-definite"):
        eigenpairs_of_sketch(A.domain, *pairs)


def test_nystrom_takes_a_shift_apart_and_keeps_trees():
    G = hesse.low_rank_operator(*factors(0, 3))
    tree = {"a": torch.zeros(3, dtype=DOUBLE), "b": torch.zeros(5, dtype=DOUBLE)}
    A = G + 0.0 * hesse.diagonal_operator(tree) + 0.3 * I
    found = hesse.nystrom_operator(A, 3, generator=seeded())
    close(found.to_dense(), A.to_dense(), 1e-8)
    assert found.domain.names == ("a", "b")
    assert hesse.logdet(found).products == 0
    again = hesse.nystrom_operator(A, 3, generator=seeded())
    assert torch.equal(found.to_dense(), again.to_dense())


def test_nystrom_takes_weight_decay_apart():
    torch.manual_seed(0)
    layers = torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
    model = torch.nn.Sequential(*layers).double()
    data = normal(2, 3), normal(2, 2, seed=1)  # four rows of outputs, so four eigenvalues
    risk = hesse.Risk(model, torch.nn.MSELoss(), data, weight_decay=0.5)
    for make, decay in (
        (hesse.ggn_operator, 0.5),
        (hesse.fisher_operator, 0.5),
        (hesse.gradient_covariance_operator, 0.0),
    ):
        A = make(risk)
        M = A.to_dense()
        n = len(M)
        found = hesse.nystrom_operator(A, 4, sketch_size=6, generator=seeded())
        close(found.to_dense(), M, 1e-7)
        whole = A + 0.25 * hesse.identity_operator(n)
        damped = hesse.nystrom_operator(whole, 4, sketch_size=6, generator=seeded())
        assert damped._split_shift()[1] == pytest.approx(decay + 0.25)
        exact = float(torch.logdet(M + 0.25 * torch.eye(n, dtype=DOUBLE)))
        estimate = hesse.logdet(damped)
        assert (estimate.products, estimate.value) == (0, pytest.approx(exact, rel=1e-7))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: hesse.nystrom_operator(-definite(), 3), "semi-definite"),
        (lambda: hesse.nystrom_operator(rotated(torch.linspace(-1.0, 1.0, 8).double()), 4), "semi"),
        (lambda: hesse.nystrom_operator(definite(), N + 1), "n = 8"),
        (lambda: hesse.nystrom_operator(definite(), 4, sketch_size=3), "sketch_size"),
        (lambda: hesse.nystrom_operator(definite(), 0), "rank"),
        (lambda: hesse.nystrom_operator(normal(4, 4), 2), "symmetric"),
        (lambda: hesse.nystrom_operator(hesse.diagonal_operator(normal(4) / 0.0), 2), "finite"),
    ],
)
def test_what_nystrom_does_not_take(make, match):
    with pytest.raises(HesseError, match=match) as caught:
        make()
    assert "hesse.nystrom_operator" in str(caught.value)
