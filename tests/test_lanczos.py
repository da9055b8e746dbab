"""The Lanczos process: a basis that stays orthogonal enough, with few passes over it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hesse.krylov import Lanczos, eigsh
from hesse.krylov.lanczos_process import LanczosProcess
from hesse.operators import diagonal_operator

DOUBLE = torch.float64
# Outliers converge early, and orthogonality to their eigenvectors is lost at once.
OUTLIERS = torch.cat([torch.randn(5000, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)),
                      torch.tensor([20.0, 35.0, 60.0], dtype=DOUBLE)])  # fmt: skip


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def process(A, steps, b=1):
    start = torch.randn(A.shape[0], b, generator=seeded(1), dtype=A.dtype)
    lanczos = LanczosProcess(A, steps, start, seeded(2))
    lanczos.extend(steps)
    return lanczos


def overlaps(lanczos):
    V = lanczos.used.double()
    return V @ V.T - torch.eye(len(V), dtype=DOUBLE)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("b", [1, 3])
def test_the_basis_is_orthogonal_to_the_square_root_of_eps(dtype, b):
    lanczos = process(diagonal_operator(OUTLIERS.to(dtype)), 60, b)
    assert overlaps(lanczos).abs().max() <= torch.finfo(dtype).eps ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_the_matrix_is_that_of_an_orthonormal_basis_to_eps(dtype):
    # Its Ritz values are those of the orthonormalised basis, by the definition.
    values = OUTLIERS.to(dtype)
    lanczos = process(diagonal_operator(values), 60)
    Q, _ = torch.linalg.qr(lanczos.used[:60].double().T)
    expected = torch.linalg.eigvalsh(Q.T @ (values.double()[:, None] * Q))
    atol = 20 * torch.finfo(dtype).eps * 60.0
    torch.testing.assert_close(lanczos.ritz()[0], expected, rtol=0, atol=atol)


def test_most_steps_need_no_pass_over_the_basis():
    spread = torch.linspace(0.0, 1.0, 5000, dtype=DOUBLE)
    for values, most in ((spread, 10), (OUTLIERS, 32)):
        lanczos = process(diagonal_operator(values), 60)
        # A row that was not orthogonalised has overlaps above the rounding that others are set to.
        W = lanczos.orthogonality.W.abs().amax(dim=0).tril(-1)[1:61]
        passes = int((W.amax(dim=1) <= 10 * torch.finfo(DOUBLE).eps).sum())
        assert passes <= most


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3), b=st.integers(1, 3))
def test_the_estimate_is_not_much_below_the_truth(seed, scale, b):
    values = scale * torch.randn(5000, generator=seeded(seed), dtype=DOUBLE) ** 3
    lanczos = process(diagonal_operator(values), 45, b)
    estimated = lanczos.orthogonality.W.abs().amax(dim=0)[: lanczos.rows, : lanczos.rows].tril(-1)
    beyond = overlaps(lanczos).abs().tril(-1).amax(dim=1) - 10 * estimated.amax(dim=1)
    assert beyond.max() <= 1e-14


def test_it_is_orthogonal_across_restarts():
    A = diagonal_operator(OUTLIERS)
    pairs = eigsh(A, 3, "LA", method=Lanczos(basis_size=6), rtol=1e-10, generator=seeded())
    assert pairs.converged.all()
    eye = torch.eye(3, dtype=DOUBLE)
    torch.testing.assert_close(pairs.vectors.T @ pairs.vectors, eye, rtol=0, atol=1e-14)
    torch.testing.assert_close(pairs.values, OUTLIERS.sort().values[-3:], rtol=0, atol=1e-12)
