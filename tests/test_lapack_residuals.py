"""LAPACK's tests: residuals in units of n eps |A|, for its kinds of matrices and small sizes.

References: Demmel & McKenney 1989, "A test matrix generation suite", LAPACK Working Note 9; the
threshold of 30 is that of its test programs.
"""

import math

import pytest
import torch

from hesse.errors import NonFiniteError, OperatorError, ShapeError, Status
from hesse.krylov import LOBPCG, Lanczos, eigsh, solve, svds
from hesse.operators import dense_operator

DOUBLE = torch.float64
THRESHOLD = 30.0
SIZES = [
    pytest.param([1, 2, 17], id="some sizes"),
    pytest.param(range(3, 17), id="sizes between", marks=[pytest.mark.slow, pytest.mark.no_cover]),
]
KINDS = [
    "zero",
    "identity",
    "graded",
    "arithmetic",
    "clustered at eps",
    "clustered at 1",
    "random",
    "graded, signs",
    "arithmetic, signs",
    "random, signs",
    "near overflow",
    "near underflow",
    "large",
    "small",
]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def spectrum(kind, n, dtype):
    """Eigenvalues from 1 to eps, some with random signs, some scaled."""
    info, generator = torch.finfo(dtype), seeded(n)
    ramp = torch.linspace(1, info.eps, n, dtype=DOUBLE)
    values = {
        "zero": torch.zeros(n, dtype=DOUBLE),
        "identity": torch.ones(n, dtype=DOUBLE),
        "graded": torch.logspace(0, math.log10(info.eps), n, dtype=DOUBLE),
        "arithmetic": ramp,
        "clustered at eps": torch.tensor([1.0] + [info.eps] * (n - 1), dtype=DOUBLE),
        "clustered at 1": torch.tensor([1.0] * (n - 1) + [info.eps], dtype=DOUBLE),
        "random": info.eps ** torch.rand(n, generator=generator, dtype=DOUBLE),
        "near overflow": ramp * info.max / 64,
        "near underflow": ramp * info.tiny * 64,
        "large": ramp * info.max**0.5,
        "small": ramp * info.tiny**0.5,
    }[kind.removesuffix(", signs")]
    signs = 1.0 - 2.0 * torch.randint(2, (n,), generator=generator).double()
    return values * signs if kind.endswith(", signs") else values


def matrix(kind, n, dtype, diagonal=False):
    values = spectrum(kind, n, dtype)
    if diagonal:
        return torch.diag(values).to(dtype)
    Q, _ = torch.linalg.qr(torch.randn(n, n, generator=seeded(n), dtype=DOUBLE))
    M = (Q * values) @ Q.T
    return (M / 2 + M.T / 2).to(dtype)


def unit(M):
    """M in float64 with a largest entry of 1, and what it was divided by."""
    scale = float(M.abs().max()) or 1.0
    return M.double() / scale, scale


def ratio(residual, M, dtype):
    """|residual| / (n eps |M|) in the 1-norm, for M of unit size; 0 for 0 / 0."""
    size = float(torch.linalg.matrix_norm(residual, 1))
    bound = max(M.shape) * torch.finfo(dtype).eps * float(torch.linalg.matrix_norm(M, 1))
    return size / bound if bound > 0.0 else size


@pytest.fixture
def counts(thorough):
    """How many of n values are asked for: one, half and all at the first sizes, else in turn."""

    def of(n, kind):
        three = (1, -(-n // 2), n)
        return set(three) if thorough or n in (1, 2, 17) else {three[(n + KINDS.index(kind)) % 3]}

    return of


def departure(U, dtype):
    """|U'U - I| / (n eps)."""
    gram = U.T @ U - torch.eye(U.shape[1], dtype=DOUBLE)
    return float(torch.linalg.matrix_norm(gram, 1)) / (len(U) * torch.finfo(dtype).eps)


@pytest.mark.some_cases(32)
@pytest.mark.fast_cases(12)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_eigenpairs(kind, dtype, diagonal, sizes, counts):
    eps = torch.finfo(dtype).eps
    for n in sizes:
        M = matrix(kind, n, dtype, diagonal)
        A, (M1, scale) = dense_operator(M), unit(M)
        for method, which in [(Lanczos(), "LA"), (Lanczos(), "BE"), (LOBPCG(), "SA")]:
            for k in counts(n, kind):
                pairs = eigsh(A, k, which, method=method, rtol=eps, generator=seeded())
                U = pairs.vectors.double()
                residual = M1 @ U - U * (pairs.values / scale)
                assert ratio(residual, M1, dtype) < THRESHOLD, (n, k, method)
                assert departure(U, dtype) < THRESHOLD, (n, k, method)
                assert (residual.norm(dim=0) <= pairs.residuals / scale * (1 + 1e-9)).all()
                assert pairs.status in (Status.CONVERGED, Status.STAGNATED)


@pytest.mark.some_cases(20)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_singular_triplets(kind, dtype, sizes, counts):
    for n in sizes:
        rows = torch.randn(n + 2, n, generator=seeded(n), dtype=DOUBLE)
        left, _ = torch.linalg.qr(rows)
        M = (left @ matrix(kind, n, dtype).double()).to(dtype)
        M1, scale = unit(M)
        for k in counts(n, kind):
            U, S, V = svds(M, k, rtol=torch.finfo(dtype).eps, generator=seeded())
            U, V, S = U.double(), V.double(), S / scale
            assert ratio(M1 @ V - U * S, M1, dtype) < THRESHOLD, (n, k)
            assert ratio(M1.T @ U - V * S, M1, dtype) < THRESHOLD, (n, k)
            assert departure(U, dtype) < THRESHOLD
            assert departure(V, dtype) < THRESHOLD


@pytest.mark.some_cases(84)
@pytest.mark.fast_cases(50)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["auto", "cg", "block-cg", "minres", "gmres", "lsmr"])
def test_solutions(kind, dtype, method, sizes):
    """|b - A x| / (n eps |A| |x|) of what is called converged, and an end of all others."""
    eps = torch.finfo(dtype).eps
    for n in sizes:
        M = matrix(kind, n, dtype)
        M1, scale = unit(M)
        x = torch.randn(n, generator=seeded(n), dtype=DOUBLE)
        for b in (M1 @ x, torch.zeros(n, dtype=DOUBLE)):
            solution = solve(M, (b * scale).to(dtype), method, rtol=n * eps)
            found = solution.x.double()
            assert torch.isfinite(found).all()
            assert solution.status is not Status.UNFINISHED
            if not solution.converged or solution.status is Status.LEAST_SQUARES:
                continue
            b = (b * scale).to(dtype).double() / scale
            size = float(found.abs().sum()) * float(torch.linalg.matrix_norm(M1, 1))
            error = float((b - M1 @ found).abs().sum())
            assert error <= THRESHOLD * n * eps * (size + float(b.abs().sum())), (n, method)
            if not b.any():
                assert not found.any()
                assert solution.products == 0


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
def test_a_well_conditioned_system_of_any_size_is_solved(dtype):
    for scale in (1.0, torch.finfo(dtype).max / 64, torch.finfo(dtype).tiny * 64):
        for n in (1, 2, 5, 17):
            values = torch.linspace(1, 2, n, dtype=DOUBLE) * scale
            x = torch.randn(n, generator=seeded(n), dtype=DOUBLE)
            for method in ("auto", "cg", "block-cg", "minres", "gmres", "lsmr", "direct"):
                solution = solve(torch.diag(values).to(dtype), (values * x).to(dtype), method)
                assert solution.converged, (n, scale, method)
                torch.testing.assert_close(solution.x.double(), x, rtol=1e-4, atol=1e-4)


def test_the_empty_matrix_is_refused():
    for call in (lambda A: eigsh(A, 1), lambda A: svds(A, 1), lambda A: solve(A, torch.zeros(0))):
        with pytest.raises(ShapeError, match="at least one row"):
            call(torch.zeros(0, 0))


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_is_not_finite_is_refused(value):
    M = torch.diag(torch.tensor([1.0, value, 2.0]))
    for call in (eigsh, svds):
        with pytest.raises((NonFiniteError, OperatorError)):
            call(M, 1)
    assert not solve(M, torch.ones(3), "gmres").converged
