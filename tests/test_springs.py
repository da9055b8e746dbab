"""Springs between atoms that are fitted to one product with a Hessian."""

import torch

import hesse
from hesse.apps.physics.springs import Pairs, fitted_springs

G = torch.Generator().manual_seed(0)
GRID = torch.cartesian_prod(*[torch.arange(3)] * 3).double()
X = GRID + 0.1 * torch.rand(27, 3, generator=G, dtype=torch.float64)
PAIRS = Pairs.of(X)
LENGTHS = (X[PAIRS.first] - X[PAIRS.second]).norm(dim=1)
KINDS = torch.where(torch.rand(27, generator=G) < 0.5, 1.0, 30.0).double()
Z = torch.randn(81, generator=G, dtype=torch.float64)


def energy(stiffness, lengths=LENGTHS):
    def f(x):
        r = (x[PAIRS.first] - x[PAIRS.second]).norm(dim=1)
        return 0.5 * (stiffness * (r - lengths) ** 2).sum()

    return f


def test_springs_are_found_again():
    """Also under tension, which gives a pair a stiffness across as well."""
    for f in (energy(3.0), energy(3.0, 0.9 * LENGTHS)):
        H = hesse.hessian_operator(f, X)
        F = fitted_springs(H, X, Z)
        torch.testing.assert_close(F, H.to_dense(), rtol=1e-8, atol=1e-8)


def test_the_matrix_does_what_the_forces_do():
    stiffness = torch.randn(40, generator=G, dtype=torch.float64)
    torch.testing.assert_close(PAIRS.forces(Z) @ stiffness, PAIRS.matrix(stiffness) @ Z)


def test_atoms_of_several_kinds_have_no_such_springs():
    kinds = KINDS[PAIRS.first] * KINDS[PAIRS.second]
    assert fitted_springs(hesse.hessian_operator(energy(kinds), X), X, Z) is None


def test_atoms_in_one_place_have_no_springs():
    """As where x are displacements: the modes are then those of block Lanczos."""

    def chain(u):
        return (u[1:] - u[:-1]).square().sum()

    modes = hesse.apps.modes(chain, torch.zeros(60, 3, dtype=torch.float64), k=3, generator=G)
    lowest = 4 * torch.sin(torch.tensor(torch.pi / 120, dtype=torch.float64)) ** 2
    torch.testing.assert_close(modes.eigenvalues, 2 * lowest.expand(3), rtol=1e-6, atol=0.0)
