# SPDX-License-Identifier: Apache-2.0
"""Vibrations and transition states: known energies, dense matrices, closed forms."""

import pytest
import torch

import hesse
from hesse.apps import modes, response, saddle
from hesse.errors import (
    ArgumentError,
    HesseError,
    NonFiniteError,
    OperatorError,
    ShapeError,
    Status,
)
from hesse.testing.surfaces import mueller_brown
from tests.clusters import DOUBLE, ENERGIES, MINIMA, STARTS, lennard_jones, pulled


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("atoms", STARTS)
def test_clusters_have_their_known_energies_and_six_motions_without_curvature(atoms):
    found = MINIMA[atoms]
    assert abs(found.fun - ENERGIES[atoms]) < 1e-6
    vibrations = modes(lennard_jones, found.x)
    H = hesse.hessian_operator(lennard_jones, found.x).to_dense()
    w = torch.linalg.eigvalsh(H)
    assert int((w.abs() < 1e-6).sum()) == 6 == vibrations.num_rigid
    torch.testing.assert_close(vibrations.eigenvalues, w[6:], rtol=1e-9, atol=1e-9)
    assert bool((vibrations.frequencies > 0.0).all())
    u = vibrations.vectors
    torch.testing.assert_close(u.T @ u, torch.eye(3 * atoms - 6, dtype=DOUBLE))
    torch.testing.assert_close(H @ u, u * vibrations.eigenvalues, rtol=1e-6, atol=1e-6)
    assert vibrations.displacements.shape == (3 * atoms - 6, atoms, 3)
    assert vibrations.products == 3 * atoms - 6


def test_frequencies_of_clusters():
    got = modes(lennard_jones, MINIMA[7].x).frequencies
    right = torch.tensor([5.88176, 5.88176, 8.11629, 8.11629, 15.91878], dtype=DOUBLE)
    torch.testing.assert_close(got[[0, 1, 2, 3, -1]], right, rtol=1e-6, atol=1e-5)
    thirteen = modes(lennard_jones, MINIMA[13].x).frequencies
    assert abs(float(thirteen[0]) - 6.53101) < 1e-5
    assert abs(float(thirteen[-1]) - 24.34625) < 1e-5


def lattice(shells):
    """A ball of the face-centred cubic lattice about a hole, of the symmetry of a cube."""
    grid = torch.cartesian_prod(*[torch.arange(-5, 6)] * 3)
    chosen = (grid.sum(1) % 2 != 0) & ((grid**2).sum(1) <= shells)
    return 1.1 / 2**0.5 * grid[chosen].to(DOUBLE)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_multiplets_are_found_whole_by_fewer_products_than_the_matrix_takes(seed):
    x = hesse.minimize(lennard_jones, lattice(11), "trust-cg", rtol=0.0, atol=1e-9).x
    assert len(x) == 92
    H = hesse.hessian_operator(lennard_jones, x).to_dense()
    right = torch.linalg.eigvalsh(H)[6:]
    few = modes(lennard_jones, x, k=8, generator=seeded(seed))
    assert bool(few.converged.all())
    assert few.products < 0.3 * (len(H) - 6)
    torch.testing.assert_close(few.eigenvalues, right[:8], rtol=1e-6, atol=1e-6)
    assert few.status is Status.CONVERGED
    assert int((right[1:9] - right[:8] < 1e-6).sum()) >= 3  # there are multiplets
    plain = modes(lennard_jones, x, k=8, generator=seeded(seed), block_size=6)
    assert few.products < plain.products < 0.9 * (len(H) - 6)
    torch.testing.assert_close(plain.eigenvalues, right[:8], rtol=1e-6, atol=1e-6)


def test_masses_are_those_of_the_generalised_eigenvalue_problem():
    masses = torch.linspace(1.0, 16.0, 7, dtype=DOUBLE)
    got = modes(lennard_jones, MINIMA[7].x, masses)
    H = hesse.hessian_operator(lennard_jones, MINIMA[7].x).to_dense()
    root = masses.repeat_interleave(3).rsqrt()
    w, _ = torch.linalg.eigh(root[:, None] * H * root)
    assert got.num_rigid == 6
    torch.testing.assert_close(got.eigenvalues, w[6:], rtol=1e-9, atol=1e-9)
    d = got.displacements.reshape(15, 21)
    M = masses.repeat_interleave(3)
    torch.testing.assert_close(d * M @ d.T, torch.eye(15, dtype=DOUBLE))
    momentum = (M * d).reshape(15, 7, 3).sum(1)
    assert momentum.abs().max() < 1e-10
    flat = modes(lennard_jones, MINIMA[7].x.reshape(-1), masses)
    torch.testing.assert_close(flat.eigenvalues, got.eigenvalues)


def springs(r):
    """A chain of three atoms with rest lengths of 1 and 2."""
    lengths = (r[1:] - r[:-1]).norm(dim=1)
    return ((lengths - torch.tensor([1.0, 2.0], dtype=DOUBLE)) ** 2).sum() / 2


def test_atoms_on_a_line_have_five_rigid_motions():
    r = torch.tensor([[0.0, 0, 0], [0, 0, 1], [0, 0, 3]], dtype=DOUBLE)
    got = modes(springs, r)
    assert got.num_rigid == 5
    right = torch.tensor([0.0, 0.0, 1.0, 3.0], dtype=DOUBLE)  # two bends cost nothing here
    torch.testing.assert_close(got.eigenvalues, right, rtol=1e-9, atol=1e-9)


def test_only_motions_that_cost_no_energy_are_projected_out():
    x = MINIMA[7].x

    def held(x):
        return lennard_jones(x) + (x**2).sum() / 2

    y = hesse.minimize(held, x, rtol=0.0, atol=1e-10).x
    got = modes(held, y)
    assert got.num_rigid == 3  # it may turn about its place
    assert modes(held, y, rigid="none").num_rigid == 0
    free = hesse.hessian_operator(held, y).to_dense()
    torch.testing.assert_close(
        *(modes(held, y, rigid="none").eigenvalues, torch.linalg.eigvalsh(free)),
        rtol=1e-8,
        atol=1e-8,
    )


def test_two_dimensions_and_other_variables():
    r = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]], dtype=DOUBLE)

    def triangle(r):
        return sum(((r[i] - r[j]).norm() - 1) ** 2 for i, j in ((0, 1), (1, 2), (0, 2))) / 2

    got = modes(triangle, r)
    assert got.num_rigid == 3
    torch.testing.assert_close(got.eigenvalues, torch.tensor([1.5, 1.5, 3.0], dtype=DOUBLE))
    tree = {"a": torch.zeros(2, dtype=DOUBLE), "b": torch.zeros(1, dtype=DOUBLE)}
    other = modes(lambda t: (t["a"] ** 2).sum() - 2 * (t["b"] ** 2).sum(), tree)
    torch.testing.assert_close(other.frequencies, torch.tensor([-2.0, 2**0.5, 2**0.5]).double())
    assert other.displacements["b"].shape == (3, 1)
    one = modes(lambda x: (x**2).sum() / 2, torch.zeros(1, 3, dtype=DOUBLE))  # nothing turns
    torch.testing.assert_close(one.frequencies, torch.ones(3, dtype=DOUBLE))


def test_a_point_that_is_not_stationary_warns():
    with pytest.warns(UserWarning, match="not a stationary point"):
        modes(lennard_jones, MINIMA[7].x * 0.95)


# -- Transition states -----------------------------------------------------------------------------

# The saddle points of the surface, Mueller & Brown 1979, doi:10.1007/BF00547608.
SADDLES = {
    "upper": ((-0.822002, 0.624313), -40.664844),
    "lower": ((0.212487, 0.292988), -72.248940),
}


def from_minimum(start, sign, **options):
    x = hesse.minimize(mueller_brown, torch.tensor(start, dtype=DOUBLE), rtol=0.0, atol=1e-9).x
    u = modes(mueller_brown, x, rigid="none").vectors[:, 0]
    u = u * u[0].sign()
    return saddle(mueller_brown, x, sign * u, radius=0.03, **options)


@pytest.mark.parametrize(
    ("start", "sign", "name"),
    [
        ((-0.05, 0.467), -1.0, "upper"),
        ((-0.05, 0.467), 1.0, "lower"),
        ((0.623, 0.028), -1.0, "lower"),
    ],
)
def test_the_saddles_of_mueller_and_brown(start, sign, name):
    found = from_minimum(start, sign)
    point, energy = SADDLES[name]
    assert found.success
    torch.testing.assert_close(found.x, torch.tensor(point, dtype=DOUBLE), rtol=0, atol=2e-6)
    assert abs(found.fun - energy) < 1e-6
    H = hesse.hessian_operator(mueller_brown, found.x).to_dense()
    w = torch.linalg.eigvalsh(H)
    assert w[0] < 0.0 < w[1]
    assert abs(found.min_curvature - float(w[0])) < 1e-6
    assert len(found.history) == found.nit + 1


def test_a_domain_bounds_the_walk():
    seen = []
    found = from_minimum(
        *((0.623, 0.028), 1.0),
        domain=lambda p: seen.append(p) or bool(p[0] < 1.2),
    )
    assert not found.success
    assert found.x[0] < 1.2
    assert found.status is Status.STAGNATED
    assert any(p[0] >= 1.2 for p in seen)


@pytest.mark.slow
def test_transition_states_of_a_cluster():
    """From scattered starts; index one is checked against the dense matrix."""
    energies = set()
    for seed in range(4):
        noise = torch.randn(7, 3, dtype=DOUBLE, generator=seeded(seed))
        found = saddle(lennard_jones, MINIMA[7].x + 0.25 * noise)
        if found.success:
            H = hesse.hessian_operator(lennard_jones, found.x).to_dense()
            w = torch.linalg.eigvalsh(H)
            assert int((w < -1e-4).sum()) == 1
            assert int((w.abs() < 1e-4).sum()) == 6
            energies.add(round(found.fun, 3))
    assert len(energies) >= 2
    assert all(-16.5 < energy < -14.0 for energy in energies)


def test_a_large_problem_takes_lanczos_and_conjugate_gradients():
    n = 80
    w = torch.linspace(1.0, 2.0, n, dtype=DOUBLE)

    def f(x):
        return x[0] ** 4 / 4 - x[0] ** 2 / 2 + (w[1:] * x[1:] ** 2).sum() + x[1] ** 4

    start = 0.1 * torch.ones(n, dtype=DOUBLE)
    start[0] = -1.0
    found = saddle(f, start, rigid="none", max_radius=0.5)
    assert found.success
    assert found.x.abs().max() < 1e-5
    assert abs(found.min_curvature + 1.0) < 1e-2


def test_a_search_can_be_stopped():
    seen = []
    found = from_minimum(
        (-0.05, 0.467), 1.0, callback=lambda climb: seen.append(climb) or len(seen) > 2
    )
    assert found.status is Status.STOPPED
    limited = from_minimum((-0.05, 0.467), 1.0, max_products=6)
    assert limited.status is Status.MAX_PRODUCTS
    assert from_minimum((-0.05, 0.467), 1.0, max_iterations=2).status is Status.MAX_ITERATIONS


# -- What is refused -------------------------------------------------------------------------------

X7 = MINIMA[7].x
REFUSED = {
    "f is no scalar": (lambda: modes(lambda x: x, X7), HesseError),
    "too many modes": (lambda: modes(lennard_jones, X7, k=16), ArgumentError),
    "no modes": (lambda: modes(lennard_jones, X7, k=0), ArgumentError),
    "masses of another number": (
        lambda: modes(lennard_jones, X7, torch.ones(5)),
        ShapeError,
    ),
    "masses as a tree": (
        lambda: modes(lennard_jones, X7, {"x": torch.ones(7)}),
        ArgumentError,
    ),
    "kinds as a text": (lambda: modes(lennard_jones, X7, kinds="carbon"), ArgumentError),
    "negative masses": (lambda: modes(lennard_jones, X7, -torch.ones(7)), ArgumentError),
    "unknown motions": (lambda: modes(lennard_jones, X7, rigid="some"), ArgumentError),
    "motions of what is no molecule": (
        lambda: modes(lambda x: (x**2).sum(), torch.ones(4), rigid="all"),
        ShapeError,
    ),
    "one atom": (
        lambda: modes(lambda x: 0 * (x**2).sum(), torch.ones(1, 3), rigid="all"),
        ArgumentError,
    ),
    "saddle: outside the domain": (
        lambda: saddle(lennard_jones, X7, domain=lambda x: False),
        ArgumentError,
    ),
    "saddle: no radius": (lambda: saddle(lennard_jones, X7, radius=0.0), ArgumentError),
    "saddle: the domain is no function": (
        lambda: saddle(lennard_jones, X7, domain=3),
        ArgumentError,
    ),
    "saddle: NaN": (lambda: saddle(lambda x: (x / 0).sum(), X7), NonFiniteError),
    "saddle: a direction of another shape": (
        lambda: saddle(lennard_jones, X7, torch.ones(3)),
        HesseError,
    ),
    "saddle: atol < 0": (lambda: saddle(lennard_jones, X7, atol=-1.0), ArgumentError),
    "response: no tensor": (lambda: response(pulled, X7, 1.0), ShapeError),
    "response: no entry": (lambda: response(pulled, X7, torch.ones(0)), ShapeError),
    "response: too many": (lambda: response(pulled, X7, torch.ones(2000)), ShapeError),
    "response: a net force": (
        lambda: response(
            lambda x, q: lennard_jones(x) + 0 * q + q * x[0, 0], X7, torch.zeros((), dtype=DOUBLE),
            rigid="all",
        ),
        OperatorError,
    ),
    "response: no minimum": (
        lambda: response(lambda x, q: q * x - x**2, torch.tensor(0.0), torch.tensor(0.0)),
        OperatorError,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(call, error):
    with pytest.raises(error) as caught:
        call()
    assert caught.value.remedy


def test_results_print_on_one_screen():
    for value in (modes(lennard_jones, X7), from_minimum((-0.05, 0.467), 1.0)):
        assert len(repr(value).splitlines()) < 24
        assert value._repr_html_().startswith("<table>")
