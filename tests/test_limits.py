"""`max_products` is kept: by every function and method, at every limit, or the least is said."""

import itertools
import math
import re

import pytest
import torch

from hesse.errors import ArgumentError, Status
from hesse.estimators import (
    KernelPolynomial,
    LanczosDensity,
    count_eigenvalues,
    diagonal,
    logdet,
    matrix_function,
    norm,
    sample_normal,
    spectral_density,
    trace,
)
from hesse.krylov import CG, GMRES, LOBPCG, LSMR, Lanczos, MultiShiftCG, eigsh, solve, svds
from hesse.operators import dense_operator, function_operator, identity_operator
from hesse.testing import CountingOperator, symmetric_matrix

DOUBLE, N = torch.float64, 40
DEFINITE = symmetric_matrix(torch.logspace(-3, 3, N))
INDEFINITE = symmetric_matrix(torch.cat([-torch.ones(3), torch.logspace(-3, 3, N - 3)]))
TALL = torch.randn(N, 12, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
LIMITS = (1, 2, 3, 5, 10, 37)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=seeded(seed), dtype=DOUBLE)


def hidden(matrix, *, symmetric):
    """A matrix that shows nothing but its products."""
    other = {} if symmetric else {"rmatvec": lambda u: matrix.T @ u}
    m, n = matrix.shape
    return function_operator(
        lambda v: matrix @ v, n, m, symmetric=symmetric, dtype=matrix.dtype, **other
    )


def counting(M, *, symmetric=True):
    return CountingOperator(hidden(M, symmetric=symmetric))


def attempt(function, *arguments, **options):
    """The result, or the error that says which limit is too small."""
    try:
        return function(*arguments, **options), None
    except ArgumentError as error:
        return None, error


def least_said(error):
    """The least limit, as an error says it."""
    found = re.search(r"max_products (>=?) (\d+)", error.expected)
    return int(found[2]) + (found[1] == ">")


# --------------------------------------------------------------------------------------------------
# Systems

RIGHT = {"vector": normal(N), "block": normal(N, 3)}
MATRICES = {"definite": DEFINITE, "indefinite": INDEFINITE}
WAYS = {
    "auto": {},
    "cg": {"method": "cg"},
    "cg, radius": {"method": CG(radius=1e3)},
    "cg, residual replaced": {"method": CG(replace_every=2)},
    "block-cg": {"method": "block-cg"},
    "minres": {"method": "minres"},
    "lsmr": {"method": "lsmr"},
    "lsmr, penalised": {"method": LSMR(tikhonov=0.1)},
    "gmres": {"method": "gmres"},
    "gmres(2)": {"method": GMRES(restart=2)},
    "multi-shift-cg": {"method": MultiShiftCG([0.0, 0.1, 1.0])},
    **{f"cg, {name}": {"method": "cg", "preconditioner": name}
       for name in ("jacobi", "block-jacobi", "nystrom")},
    "block-cg, jacobi": {"method": "block-cg", "preconditioner": "jacobi"},
}  # fmt: skip


def assert_honest(solution, M, b):
    """The residual is that of x, unless it is not known; zero is the start."""
    x, b = solution.x.reshape(N, -1), b.reshape(N, -1)
    if not math.isnan(solution.residual_norm) and x.shape == b.shape:
        residual = float((b - M @ x).norm(dim=0).max())
        assert solution.residual_norm == pytest.approx(residual, rel=1e-6)


SYSTEMS = [
    (matrix, way, form, start)
    for matrix, way, form, start in itertools.product(MATRICES, WAYS, RIGHT, ("0", "x0"))
    if not (way == "multi-shift-cg" and start == "x0")
    and not (matrix == "indefinite" and way == "cg, nystrom")
]


@pytest.mark.some_cases(64)
@pytest.mark.fast_cases(40)
@pytest.mark.parametrize(("matrix", "way", "form", "start"), SYSTEMS)
def test_solve_keeps_the_limit(matrix, way, form, start):
    M, b = MATRICES[matrix], RIGHT[form]
    x0 = None if start == "0" else normal(*b.shape, seed=2)
    for limit in LIMITS:
        A, options = counting(M), {**WAYS[way], "x0": x0, "generator": seeded()}
        solution, error = attempt(solve, A, b, rtol=1e-14, max_products=limit, **options)
        if error is not None:  # a named preconditioner takes more, or a block of starts
            assert limit < least_said(error) <= N + 1
            continue
        assert solution.products == A.products <= limit
        assert not solution.converged
        if "multi" not in way and "penalised" not in way:
            assert_honest(solution, M, b)
        if "radius" not in way and matrix == "definite":
            assert solution.status is Status.MAX_PRODUCTS


@pytest.mark.parametrize("tikhonov", [0.0, 1.0])
def test_least_squares_keep_the_limit(tikhonov):
    for limit in range(1, 40):
        A, b = counting(TALL, symmetric=False), normal(N)
        solution = solve(A, b, LSMR(tikhonov=tikhonov), max_products=limit)
        assert solution.products == A.products <= limit
        assert solution.converged == (solution.status is Status.LEAST_SQUARES)
        assert solution.converged or solution.status is Status.MAX_PRODUCTS
    assert solution.converged


@pytest.mark.parametrize("method", ["minres", "gmres", "auto"])
def test_a_system_without_a_solution_keeps_the_limit(method):
    M = symmetric_matrix(torch.tensor([0.0, 0.0, 1.0, -2.0, 3.0] * 8))
    for limit in range(1, 16):
        A = counting(M)
        solution = solve(A, normal(N), method, max_products=limit)
        assert solution.products == A.products <= limit
    assert method == "gmres" or solution.status is Status.LEAST_SQUARES


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_an_exact_inverse_keeps_the_limit(limit):
    for b in RIGHT.values():
        A = dense_operator(DEFINITE)
        solution = solve(A, b, "direct", rtol=1e-30, max_products=limit)
        assert solution.products <= limit
        assert not solution.converged


def test_what_an_inverse_took_that_did_not_help_counts():
    class Misleading(CountingOperator):
        def _inverse(self):
            return identity_operator(N, DOUBLE)

    A = Misleading(dense_operator(DEFINITE))
    solution = solve(A, normal(N))
    assert (solution.method, solution.converged) == ("cg", True)
    assert solution.products == A.products


def test_nothing_taken_is_the_start_with_its_residual():
    A, b = counting(DEFINITE), normal(N)
    for method in ("cg", "minres", "gmres", "lsmr"):
        solution = solve(A, b, method, max_products=1)
        assert (solution.status, solution.products) == (Status.MAX_PRODUCTS, 0)
        assert solution.residual_norm == pytest.approx(float(b.norm()))
        assert not solution.x.any()
        begun = solve(A, b, method, x0=b, max_products=1)
        assert (begun.status, begun.products) == (Status.MAX_PRODUCTS, 1)
        assert begun.residual_norm == pytest.approx(float((b - DEFINITE @ b).norm()))
        assert torch.equal(begun.x, b)


def test_a_limit_that_was_reached_is_not_exceeded_by_asking_again(tmp_path):
    A, b = counting(DEFINITE), normal(N)
    for method in ("cg", "minres", "gmres", "lsmr"):
        path = tmp_path / method
        first, again = (
            solve(A, b, method, rtol=1e-14, max_products=9, checkpoint=path) for _ in range(2)
        )
        assert first.products == again.products <= 9
        assert first.residual_norm == again.residual_norm


def test_a_named_preconditioner_counts_and_says_what_it_takes():
    with pytest.raises(ArgumentError, match="max_products > 32"):
        solve(counting(DEFINITE), normal(N), "cg", "jacobi", max_products=32)
    with pytest.raises(ArgumentError, match="max_products > 32"):
        eigsh(counting(DEFINITE), 2, method=LOBPCG(preconditioner="jacobi"), max_products=20)
    A = counting(DEFINITE)
    pairs = eigsh(
        A, 2, "SA", method=LOBPCG(preconditioner="jacobi"), max_products=60, generator=seeded()
    )
    assert 32 < pairs.products == A.products <= 60
    A = counting(DEFINITE + torch.eye(N, dtype=DOUBLE))
    solution = solve(A, normal(N), "cg", "nystrom", max_products=25, generator=seeded())
    assert 20 < solution.products == A.products <= 25


# --------------------------------------------------------------------------------------------------
# Eigenvalues and singular values

SPECTRA = {
    "one": {"k": 1},
    "six": {"k": 6},
    "all": {"k": N},
    "both ends": {"k": 4, "which": "BE"},
    "block": {"k": 3, "method": Lanczos(block_size=2)},
    "low precision": {"k": 3, "method": Lanczos(basis_dtype=torch.float32)},
    "lobpcg": {"k": 3, "which": "SA", "method": "lobpcg"},
    "lobpcg, one": {"k": 1, "which": "SA", "method": "lobpcg"},
    "lobpcg, six": {"k": 6, "which": "LA", "method": "lobpcg"},
}


@pytest.mark.parametrize("limit", [*LIMITS, 60])
@pytest.mark.parametrize("name", SPECTRA)
def test_eigsh_keeps_the_limit(name, limit):
    A, asked = counting(DEFINITE), {**SPECTRA[name], "rtol": 1e-14}
    pairs, error = attempt(eigsh, A, **asked, max_products=limit, generator=seeded())
    if error is not None:
        assert A.products == 0
        assert limit < least_said(error) <= 3
        assert eigsh(A, **asked, max_products=least_said(error)).products == least_said(error)
        return
    assert pairs.products == A.products <= limit
    assert 1 <= len(pairs.values) <= asked["k"]
    distance = (torch.linalg.eigvalsh(DEFINITE)[:, None] - pairs.values).abs().amin(dim=0)
    assert (distance <= pairs.residuals).all()
    if not bool(pairs.converged.all()) or len(pairs.values) < asked["k"]:
        assert pairs.status in (Status.MAX_PRODUCTS, Status.STAGNATED)
    if limit <= 10:
        assert pairs.status is Status.MAX_PRODUCTS


def test_a_residual_that_could_not_be_looked_at_is_infinite():
    class Changing(CountingOperator):
        def _matvec(self, v):
            return super()._matvec(v) * (1.0 if self.products <= 8 else 2.0)

    pairs = eigsh(Changing(dense_operator(DEFINITE)), 3, rtol=1e-14, max_products=9)
    assert pairs.products == 9
    assert not pairs.converged.any()
    assert pairs.residuals.isinf().all()
    exact = eigsh(DEFINITE, 3, rtol=1e-14, max_products=9)
    rounded = eigsh(
        DEFINITE, 3, method=Lanczos(basis_dtype=torch.float32), rtol=1e-14, max_products=9
    )
    assert exact.residuals.isfinite().all()
    assert rounded.residuals.isfinite().all()


@pytest.mark.parametrize("limit", [*LIMITS, 60])
@pytest.mark.parametrize("k", [1, 3, 12])
def test_svds_keeps_the_limit(k, limit):
    A = counting(TALL, symmetric=False)
    triplets, error = attempt(svds, A, k, rtol=1e-14, max_products=limit, generator=seeded())
    if error is not None:
        assert limit < least_said(error) == 6
        return
    assert triplets.products == A.products <= limit
    assert 1 <= len(triplets.S) <= k
    if len(triplets.S) < k:
        assert triplets.status is Status.MAX_PRODUCTS
    distance = (torch.linalg.svdvals(TALL)[:, None] - triplets.S).abs().amin(dim=0)
    assert (distance <= triplets.residuals).all()


# --------------------------------------------------------------------------------------------------
# Estimators


def functions_of_a_vector(A, **limits):
    return matrix_function("sqrt", A, normal(N), **limits)


ESTIMATES = {
    **{f"trace {method}": (trace, {"method": method, "rtol": 0.0})
       for method in ("auto", "hutchinson", "hutch++", "xtrace", "xnystrace")},
    **{f"diagonal {method}": (diagonal, {"method": method, "rtol": 0.0})
       for method in ("auto", "hutchinson", "xdiag")},
    **{f"density {method.name}": (spectral_density, {"method": method})
       for method in (LanczosDensity(steps=4), KernelPolynomial(degree=8))},
    "norm fro": (norm, {"rtol": 0.0}),
    "norm 2": (norm, {"ord": 2, "rtol": 1e-14}),
    "logdet": (logdet, {"rtol": 0.0}),
    "count_eigenvalues": (count_eigenvalues, {"high": 1.0, "rtol": 0.0, "atol": 0.0}),
    "matrix_function": (functions_of_a_vector, {}),
    "sample_normal": (sample_normal, {}),
}  # fmt: skip


def least_for(name):
    """The limit that an estimator says it needs, when asked with one product."""
    estimate, arguments = ESTIMATES[name]
    _, error = attempt(estimate, counting(DEFINITE), **arguments, max_products=1)
    return 1 if error is None else least_said(error)


@pytest.mark.some_cases(64)
@pytest.mark.fast_cases(40)
@pytest.mark.parametrize("limit", [*LIMITS, 100])
@pytest.mark.parametrize("name", ESTIMATES)
def test_estimators_keep_the_limit(name, limit):
    A, (estimate, arguments) = counting(DEFINITE), ESTIMATES[name]
    result, error = attempt(estimate, A, **arguments, max_products=limit, generator=seeded())
    if error is not None:
        assert A.products == 0
        assert limit < least_said(error) <= 24
        return
    assert 0 < result.products == A.products <= limit


@pytest.mark.parametrize("name", [n for n in ESTIMATES if least_for(n) > 1])
def test_the_least_that_is_said_is_enough(name):
    (estimate, arguments), least = ESTIMATES[name], least_for(name)
    assert 0 < estimate(counting(DEFINITE), **arguments, max_products=least).products <= least
