"""How many vectors estimators, svds and preconditioners take, as their docstrings say.

Those of the solvers, of eigsh and of its other methods are counted beside their other tests.
"""

import pytest
import torch

from hesse import identity_operator
from hesse.estimators import (
    KernelPolynomial,
    LanczosDensity,
    count_eigenvalues,
    diagonal,
    logdet,
    matrix_function,
    norm,
    spectral_density,
    trace,
)
from hesse.krylov import Lanczos, svds
from hesse.krylov.preconditioners import jacobi, nystrom, pivoted_cholesky
from hesse.operators import LinearOperator, diagonal_operator, function_operator
from hesse.testing import PeakMemory
from hesse.vectors.space import Space

DOUBLE = torch.float64
N = 50_000
DECAYING = torch.arange(1, N + 1, dtype=DOUBLE) ** -1.5


class Unstructured(LinearOperator):
    """diag(d), of which nobody knows."""

    def __init__(self, d):
        super().__init__(Space.flat(len(d), d.dtype), symmetric=True)
        self.d = d

    def _matvec(self, v):
        return self.d * v

    def _matmat(self, block):
        return self.d[:, None] * block


DIAGONAL = diagonal_operator(DECAYING)
A = Unstructured(DECAYING)
SHIFTED = A + 0.1 * identity_operator(N, dtype=DOUBLE)
UNKNOWN = function_operator(lambda v: DECAYING * v, N, dtype=DOUBLE, symmetric=True)
_ = UNKNOWN @ DECAYING, UNKNOWN @ DECAYING  # it keeps two vectors, to test what the function gives
LEADING = torch.linspace(0, 1, N, dtype=DOUBLE)
LEADING[:12] = torch.arange(2.0, 14.0)
SEPARATED = Unstructured(LEADING)
LANCZOS, POLYNOMIAL = LanczosDensity(steps=20), KernelPolynomial(degree=40)
B, C = torch.ones(N, dtype=DOUBLE), torch.ones(N, 3, dtype=DOUBLE)


def seeded():
    return torch.Generator().manual_seed(0)


def fixed(products, block):
    return {
        "rtol": 0.0, "max_products": products, "block_size": block, "generator": seeded()
    }  # fmt: skip


def density(method, block, probes):
    return spectral_density(A, probes=probes, block_size=block, method=method, generator=seeded())


CASES = {
    "trace hutchinson 1": (lambda: trace(A, method="hutchinson", **fixed(24, 1)), 2),
    "trace hutchinson 8": (lambda: trace(A, method="hutchinson", **fixed(24, 8)), 16),
    "trace hutch++ 10": (lambda: trace(A, method="hutch++", **fixed(40, 8)), 10 + 30),
    "trace hutch++ 20": (lambda: trace(A, method="hutch++", **fixed(80, 8)), 20 + 30),
    "trace xtrace 1": (lambda: trace(A, method="xtrace", **fixed(40, 1)), 3 * 20 + 2),
    "trace xtrace 8": (lambda: trace(A, method="xtrace", **fixed(40, 8)), 3 * 20 + 4),
    "trace xnystrace 1": (lambda: trace(A, method="xnystrace", **fixed(40, 1)), 2 * 40 + 2),
    "trace xnystrace 8": (lambda: trace(A, method="xnystrace", **fixed(40, 8)), 2 * 40 + 4),
    "diagonal 1": (lambda: diagonal(A, method="hutchinson", **fixed(24, 1)), 3 + 7),
    "diagonal 8": (lambda: diagonal(A, method="hutchinson", **fixed(24, 8)), 3 * 8 + 7),
    "norm 1": (lambda: norm(A, **fixed(24, 1)), 2),
    "norm 8": (lambda: norm(A, **fixed(24, 8)), 16),
    "norm 2": (lambda: norm(A, ord=2, generator=seeded()), 30 + 1 + 4),
    "logdet 4": (lambda: logdet(SHIFTED, **fixed(64, 4)), 4 * 6),
    "logdet grown": (lambda: logdet(SHIFTED, **fixed(64, 1)), 5),
    "count 1": (lambda: count_eigenvalues(SHIFTED, 0.05, 0.2, **fixed(64, 1)), 5),
    "density lanczos 1": (lambda: density(LANCZOS, 1, 4), 3),
    "density lanczos 4": (lambda: density(LANCZOS, 4, 4), 4 * 4),
    "density polynomial 2": (lambda: density(POLYNOMIAL, 2, 4), 5 * 2),
    "density polynomial 8": (lambda: density(POLYNOMIAL, 8, 16), 5 * 8),
    "function": (lambda: matrix_function("sqrt", SHIFTED, B, basis_size=20), 20 + 5 + 2 - 2),
    "functions": (lambda: matrix_function("sqrt", SHIFTED, C, basis_size=20), 3 * 25 + 2 * 3),
    "svds 2": (
        lambda: svds(SEPARATED, 2, method=Lanczos(basis_size=20), generator=seeded()),
        20 + 1 + 2 + 4,
    ),
    "svds 8": (
        lambda: svds(SEPARATED, 8, method=Lanczos(basis_size=30), generator=seeded()),
        30 + 1 + 8 + 4,
    ),
    "svds 11": (
        lambda: svds(SEPARATED, 11, method=Lanczos(basis_size=30), generator=seeded()),
        5 * 11,
    ),
    "nystrom": (lambda: nystrom(A, rank=10, generator=seeded()), 5 * 10),
    "jacobi": (lambda: jacobi(UNKNOWN, probes=10, generator=seeded()), 3 * 10),
    "pivoted cholesky": (
        lambda: pivoted_cholesky(DIAGONAL, rank=10),
        2 * 10 + 2,
    ),
}


@pytest.mark.fast_cases(5)
@pytest.mark.parametrize("name", CASES)
def test_so_many_vectors(name):
    call, vectors = CASES[name]
    with PeakMemory() as memory:
        call()
    # Signs are drawn in words, which take a sixteenth of a vector for a while.
    assert memory.peak / (8 * N) == pytest.approx(vectors, rel=0.01, abs=1 / 16 + 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("probes", [12, 24])
def test_xdiag_takes_four_to_six_beside_three_a_probe(probes):
    n = 200_000
    wide = diagonal_operator(torch.arange(1, n + 1, dtype=DOUBLE) ** -1.5)
    with PeakMemory() as memory:
        diagonal(wide, method="xdiag", **fixed(2 * probes, 1))
    assert 3 * probes + 4 <= memory.peak / (8 * n) <= 3 * probes + 6.2
