"""Multiple eigenvalues at the wanted end: all of them, with true residuals, in few products."""

import pytest
import torch

from hesse.errors import Status
from hesse.krylov import Lanczos, eigsh
from hesse.krylov.hidden import Hidden
from hesse.operators import LinearOperator, dense_operator, diagonal_operator, function_operator
from hesse.testing import CountingOperator
from hesse.vectors import Space

DOUBLE = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rotated(values, seed=0, dtype=DOUBLE):
    """A dense symmetric matrix with these eigenvalues."""
    n = len(values)
    Q, _ = torch.linalg.qr(torch.randn(n, n, generator=seeded(seed), dtype=DOUBLE))
    M = (Q * values.double()) @ Q.T
    return ((M + M.T) / 2).to(dtype)


def true_residuals(M, pairs):
    U = pairs.vectors.double()
    return (M.double() @ U - U * pairs.values).norm(dim=0)


ZEROS = torch.cat([torch.zeros(6, dtype=DOUBLE), torch.linspace(1, 100, 94, dtype=DOUBLE)])
DAMPED = 1 + torch.cat([torch.zeros(60, dtype=DOUBLE), torch.logspace(-3, 2, 40, dtype=DOUBLE)])
SPECTRA = {
    "zeros": ZEROS,
    "damped": DAMPED,
    "pairs": torch.linspace(-1, 1, 50, dtype=DOUBLE).repeat_interleave(2),
    "three": torch.tensor([-1.0, 1.0, 3.0], dtype=DOUBLE).repeat(33),
    "one": torch.full((90,), 2.0, dtype=DOUBLE),
    "zero": torch.zeros(90, dtype=DOUBLE),
}


@pytest.mark.some_cases(14)
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("which", ["SA", "LA"])
@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
def test_all_copies_are_found_in_at_most_n_products(name, which, dtype):
    values, k = SPECTRA[name].sort().values, 8
    M = rotated(values, dtype=dtype)
    A = CountingOperator(dense_operator(M))
    pairs = eigsh(A, k, which, generator=seeded(1))
    wanted = values[:k] if which == "SA" else values[-k:]
    scale = float(values.abs().max())
    accuracy = 1e-12 if dtype == DOUBLE else 1e-4
    torch.testing.assert_close(pairs.values, wanted, rtol=0, atol=accuracy * scale)
    assert pairs.status is Status.CONVERGED
    assert pairs.products == A.products <= len(values) + 1 + (k if dtype != DOUBLE else 0)
    assert (true_residuals(M, pairs) <= pairs.residuals).all()
    assert pairs.residuals.max() <= 3 * torch.finfo(dtype).eps ** 0.5 * scale


@pytest.mark.parametrize("search", [True, False])
def test_a_damped_matrix_of_low_rank(search):
    X = torch.randn(300, 400, generator=seeded(), dtype=DOUBLE)
    M = X.T @ X / 400 + torch.eye(400, dtype=DOUBLE)
    # The same seed as that of the data: as a start, X[0] would have no component in the kernel.
    pairs = eigsh(M, 4, "SA", method=Lanczos(search_missed=search), generator=seeded())
    assert pairs.status is Status.CONVERGED
    assert pairs.products <= 401
    assert pairs.residuals.max() <= 1.5e-8
    if search:
        torch.testing.assert_close(pairs.values, torch.ones(4, dtype=DOUBLE), rtol=0, atol=1e-10)


@pytest.mark.some_cases(4)
@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("basis_size", [9, 12, 25])
@pytest.mark.parametrize("which", ["LA", "SA"])
def test_a_basis_that_is_restarted_and_has_to_drop_rows(basis_size, which):
    """Residuals stay true whatever had to be given up, and so does what is called converged."""
    values = torch.cat([torch.linspace(-1, 1, 90, dtype=DOUBLE), torch.tensor([3.0] * 3).double()])
    M = rotated(values if which == "LA" else -values)
    for seed in range(3):
        method = Lanczos(basis_size=basis_size)
        pairs = eigsh(M, 4, which, method=method, generator=seeded(seed))
        assert pairs.status is Status.CONVERGED
        found = pairs.values if which == "LA" else -pairs.values.flip(0)
        wanted = torch.tensor([1.0, 3.0, 3.0, 3.0], dtype=DOUBLE)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
        assert (true_residuals(M, pairs) <= pairs.residuals).all()


@pytest.mark.slow
def test_a_search_that_leaves_little_of_the_space_takes_all_of_it():
    """The last of ten copies hid in rows that waited, for one start in fourteen."""
    M = rotated(torch.cat([torch.linspace(0.0, 1.0, 190), torch.full((10,), 2.0)]))
    A = function_operator(lambda v: M @ v, 200, symmetric=True, dtype=DOUBLE)
    for seed in (5, 20, *range(6)):
        pairs = eigsh(A, 10, rtol=1e-8, generator=seeded(seed))
        assert pairs.products <= 175 or pairs.unseen == 0.0
        assert (pairs.unseen or 0.0) > 0.0 or bool((pairs.values > 1.9).all())


def test_a_large_multiplicity_above_the_size_of_a_whole_basis():
    values = torch.cat([torch.full((2400,), 1.0), torch.linspace(1.5, 4, 200)]).double()
    pairs = eigsh(diagonal_operator(values), 4, "SA", generator=seeded())
    torch.testing.assert_close(pairs.values, torch.ones(4, dtype=DOUBLE), rtol=0, atol=1e-12)
    assert pairs.status is Status.CONVERGED
    assert pairs.products <= 250


def test_products_are_kept_for_the_residuals_of_all_pairs():
    values = torch.cat([torch.zeros(30, dtype=DOUBLE), torch.linspace(1, 9, 60, dtype=DOUBLE)])
    M = rotated(values)
    for limit in range(12, 120, 9):
        A = CountingOperator(dense_operator(M))
        pairs = eigsh(
            A, 4, "SA", method=Lanczos(basis_size=8), max_products=limit, generator=seeded()
        )
        assert pairs.products == A.products <= limit
        assert torch.isfinite(pairs.residuals).all()
        assert (true_residuals(M, pairs) <= pairs.residuals).all()


def test_the_error_of_products_is_no_failure_to_converge():
    """Products that are right to 1e-6: the eigenvalue zero has no residual below that."""
    values = torch.cat([torch.zeros(10), torch.linspace(1, 100, 90)])

    def product(v):
        step = 1e-6 * (values * v).abs().max()
        return (values * v / step).round() * step

    A = function_operator(product, 100, symmetric=True, dtype=torch.float32)
    for seed in range(3):
        pairs = eigsh(A, 6, "SA", generator=seeded(seed))
        assert pairs.status is Status.CONVERGED
        assert pairs.values.abs().max() <= 1e-3


def test_an_asymmetry_is_found_after_a_search_too():
    """What was dropped explains a difference of the size of a residual, and no more."""
    n, values = 400, torch.cat([torch.linspace(0, 1, 398), torch.tensor([3.0, 3.0])]).double()
    E = torch.randn(n, n, generator=seeded(), dtype=DOUBLE) / n**0.5
    products = []

    class Changing(LinearOperator):  # a function that a user gives is tested by itself
        def _matvec(self, v):
            products.append(1)
            wrong = 0.0 if len(products) < 60 else 0.5
            return values * v + wrong * (E @ v)

    A = Changing(Space.flat(n, DOUBLE), symmetric=True)
    with pytest.raises(Exception, match="symmetric=True"):
        eigsh(A, 3, rtol=1e-12, method=Lanczos(basis_size=7), generator=seeded())


def test_no_restart_lets_a_bound_grow():
    hidden, generator = Hidden(), seeded()
    hidden.add(torch.randn(3, 5, generator=generator, dtype=DOUBLE))
    before = hidden.bounds(torch.eye(5, dtype=DOUBLE)).norm()
    for _ in range(200):
        Q, _ = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=DOUBLE))
        hidden.rotate(Q)
    after = hidden.bounds(torch.eye(5, dtype=DOUBLE)).norm()
    torch.testing.assert_close(after, before)
