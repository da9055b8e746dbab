"""Springs between atoms that are fitted to one product with a Hessian."""

import pytest
import torch

import hesse
from hesse.apps import modes
from hesse.apps.physics.springs import Pairs, springs_of
from tests.test_physics import lattice

G = torch.Generator().manual_seed(0)
GRID = torch.cartesian_prod(*[torch.arange(3)] * 3).double()
X = GRID + 0.1 * torch.rand(27, 3, generator=G, dtype=torch.float64)
PAIRS = Pairs.of(X)
LENGTHS = (X[PAIRS.first] - X[PAIRS.second]).norm(dim=1)
KINDS = (torch.rand(27, generator=G) < 0.5).long()
Z = torch.randn(81, generator=G, dtype=torch.float64)
ONE = torch.zeros(27, dtype=torch.int64)


def energy(stiffness, lengths=LENGTHS):
    def f(x):
        r = (x[PAIRS.first] - x[PAIRS.second]).norm(dim=1)
        return 0.5 * (stiffness * (r - lengths) ** 2).sum()

    return f


@pytest.mark.parametrize("tension", [1.0, 0.9])
def test_springs_are_found_again(tension):
    """Also under tension, which gives a pair a stiffness across as well."""
    H = hesse.hessian_operator(energy(3.0, tension * LENGTHS), X)
    F, products = springs_of(H, X, ONE, G)
    torch.testing.assert_close(F, H.to_dense(), rtol=1e-8, atol=1e-8)
    assert products == PAIRS.num_products + 1  # the last one for soft modes
    assert 1 <= PAIRS.num_products <= 3


@pytest.mark.parametrize("decay", [0, 11])
def test_the_matrix_does_what_the_forces_do(decay):
    pairs = Pairs.of(X, KINDS, decay)
    stiffness = torch.randn(2 * pairs.shares.shape[1], generator=G, dtype=torch.float64)
    torch.testing.assert_close(pairs.forces(Z) @ stiffness, pairs.matrix(stiffness) @ Z)


def test_atoms_of_several_kinds_have_springs_of_their_own():
    table = torch.tensor([[1.0, 30.0], [30.0, 5.0]], dtype=torch.float64)
    f = energy(table[KINDS[PAIRS.first], KINDS[PAIRS.second]])
    H = hesse.hessian_operator(f, X)
    F, products = springs_of(H, X, KINDS, G)
    torch.testing.assert_close(F, H.to_dense(), rtol=1e-8, atol=1e-8)
    assert products == Pairs.of(X, KINDS).num_products + 1
    assert springs_of(H, X, ONE, G)[0] is None


def test_more_kinds_than_some_products_tell_count_as_one():
    H = hesse.hessian_operator(energy(3.0), X)
    F, products = springs_of(H, X, torch.arange(27), G)
    torch.testing.assert_close(F, H.to_dense(), rtol=1e-8, atol=1e-8)
    assert products == PAIRS.num_products + 1


def test_atoms_in_one_place_have_no_springs():
    """As where x are displacements: the modes are then those of block Lanczos."""

    def chain(u):
        return (u[1:] - u[:-1]).square().sum()

    modes = hesse.apps.modes(chain, torch.zeros(60, 3, dtype=torch.float64), k=3, generator=G)
    lowest = 4 * torch.sin(torch.tensor(torch.pi / 120, dtype=torch.float64)) ** 2
    torch.testing.assert_close(modes.eigenvalues, 2 * lowest.expand(3), rtol=1e-6, atol=0.0)


@pytest.mark.slow
def test_several_kinds_of_atoms_have_springs_of_their_own():
    """A crystal of two kinds, told by their masses or by their labels."""
    x = lattice(11)
    kinds = (x * 2**0.5 / 1.1).round().long()[:, 0] % 2
    i, j = torch.triu_indices(len(x), len(x), 1)
    rest = (x[i] - x[j]).norm(dim=1)
    stiffness = torch.tensor([[10.0, 40.0], [40.0, 3.0]], dtype=torch.float64)[kinds[i], kinds[j]]
    stiffness = stiffness / (1 + 4 * (rest > 1.3)) * (rest < 1.7)

    def crystal(x):
        return (stiffness * ((x[i] - x[j]).norm(dim=1) - rest) ** 2).sum() / 2

    masses = torch.tensor([1.0, 3.0], dtype=torch.float64)[kinds]
    H = hesse.hessian_operator(crystal, x).to_dense()
    for given, labels in ((masses, None), (None, kinds)):
        root = torch.ones(len(H)).to(H) if given is None else given.repeat_interleave(3).rsqrt()
        right = torch.linalg.eigvalsh(root[:, None] * H * root)[6:]
        got = modes(crystal, x, given, 8, kinds=labels, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(got.eigenvalues, right[:8], rtol=1e-6, atol=1e-6)
        assert bool(got.converged.all())
        alike = modes(
            crystal, x, given, 8, kinds=0 * kinds, generator=torch.Generator().manual_seed(0)
        )
        torch.testing.assert_close(alike.eigenvalues, right[:8], rtol=1e-6, atol=1e-6)
        assert got.products < 0.3 * len(right)
        assert got.products < 0.5 * alike.products
