"""Units do not matter: what the toolbox finds at a scale of 1 it finds at 1e-25 and at 1e18."""

import pytest
import torch

from hesse.krylov import MultiShiftCG, eigsh, solve
from hesse.testing import symmetric_matrix

DOUBLE = torch.float64
SOLVERS = ["cg", "block-cg", "minres", "gmres", "lsmr", MultiShiftCG([0.0])]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def matrix():
    return symmetric_matrix(torch.linspace(1, 20, 30, dtype=DOUBLE)).to_dense()


@pytest.mark.fast_cases(50)
@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e-12, 1e12, 1e18, 1e25])
@pytest.mark.parametrize("preconditioner", [None, "jacobi", "nystrom"])
@pytest.mark.parametrize("method", SOLVERS, ids=str)
def test_of_an_operator(matrix, method, preconditioner, scale):
    if preconditioner is not None and method in SOLVERS[-2:]:
        pytest.skip("it takes none")
    b = torch.randn(30, generator=seeded())
    A = (scale * matrix).float()
    found = solve(A, b, method, preconditioner, generator=seeded())
    assert found.converged, found.status
    expected = torch.linalg.solve(matrix, b.double())
    torch.testing.assert_close(
        found.x.double().flatten() * scale, expected, rtol=1e-3, atol=1e-4 * float(expected.norm())
    )


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e15, 1e25])
def test_of_a_right_hand_side_too(matrix, scale):
    """p'Ap is of the size of the cube of the scale: far out of the range of float32."""
    b = torch.randn(30, generator=seeded())
    found = solve((scale * matrix).float(), scale * b, "cg")
    assert found.converged, found.status
    expected = torch.linalg.solve(matrix, b.double())
    torch.testing.assert_close(found.x.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-36, 1e-25, 1e18, 1e30])
@pytest.mark.parametrize("method", ["lanczos", "lobpcg"])
def test_of_eigenvalues(matrix, method, scale):
    pairs = eigsh((scale * matrix).float(), 3, method=method, rtol=1e-3, generator=seeded())
    assert pairs.converged.all()
    expected = torch.linspace(1, 20, 30, dtype=DOUBLE)[-3:]
    torch.testing.assert_close(pairs.values / scale, expected, rtol=1e-4, atol=0)
