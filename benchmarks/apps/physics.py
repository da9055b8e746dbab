"""Clusters of Lennard-Jones atoms, and the surface of Mueller and Brown.

Energies and six motions without curvature beside the known values; the lowest modes by springs and
by block Lanczos beside the dense matrix, of a cluster of one kind of atoms, of a glass of two (the
lengths and depths of Kob and Andersen, masses 1 and 3) and of a crystal of springs between two
kinds; 20 searches for saddle points from scattered starts, the
three minima of Mueller and Brown's surface either way, and the response of a cluster beside
differences.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import hesse
from hesse.apps import modes, response, saddle

KNOWN = {7: -16.505384, 13: -44.326801, 38: -173.928427}
MINIMA = ((-0.558, 1.442), (-0.05, 0.467), (0.623, 0.028))


def main(arguments: Sequence[str] = ()) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks apps physics", description=__doc__)
    parser.add_argument("--searches", type=int, default=20, help="for saddle points")
    parser.add_argument("--modes", type=int, default=12, help="the lowest; 0: none")
    options = parser.parse_args(list(arguments))
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    clusters()
    if options.modes:
        lowest_modes(options.modes)
        two_kinds(options.modes)
    surface()
    if options.searches:
        transition_states(options.searches)
    responses()


def lennard_jones(x: Tensor) -> Tensor:
    r = x.reshape(-1, 3)
    i, j = torch.triu_indices(len(r), len(r), 1)
    s = ((r[i] - r[j]) ** 2).sum(1) ** -3
    return 4 * (s * s - s).sum()


def start_of(atoms: int) -> Tensor:
    """A pentagonal bipyramid, an icosahedron, or a ball of the face-centred cubic lattice."""
    if atoms == 7:
        a = torch.arange(5) * 2 * math.pi / 5
        ring = 0.95 * torch.stack([a.cos(), a.sin(), 0 * a], 1)
        return torch.cat([ring, torch.tensor([[0, 0, 0.6], [0, 0, -0.6]])])
    if atoms == 13:
        p = (1 + 5**0.5) / 2
        signs = [(s, t) for s in (1.0, -1.0) for t in (p, -p)]
        corners = [v for s, t in signs for v in ([0, s, t], [s, t, 0], [t, 0, s])]
        shell = torch.tensor(corners)
        return torch.cat([1.08 * shell / shell[0].norm(), torch.zeros(1, 3)])
    grid = torch.cartesian_prod(*[torch.arange(-7, 8)] * 3)
    grid = grid[grid.sum(1) % 2 != 0]
    nearest = (grid**2).sum(1).argsort(stable=True)[:atoms]
    return 1.1 / 2**0.5 * grid[nearest].double()


def minimum(atoms: int, atol: float = 1e-10) -> hesse.OptimizeResult:
    return hesse.minimize(lennard_jones, start_of(atoms), "trust-cg", rtol=0.0, atol=atol)


def clusters() -> None:
    print("atoms   energy        known         zero modes   lowest omega   top omega")
    for atoms, known in KNOWN.items():
        found = minimum(atoms)
        w = torch.linalg.eigvalsh(hesse.hessian_operator(lennard_jones, found.x).to_dense())
        got = modes(lennard_jones, found.x)
        zero = int((w.abs() < 1e-6).sum())
        low, top = float(got.frequencies[0]), float(got.frequencies[-1])
        print(f"{atoms:5}   {found.fun:.6f}   {known:.6f}   {zero:10}   {low:12.5f}   {top:9.5f}")


def lowest_modes(k: int) -> None:
    print_modes("236 atoms", lennard_jones, minimum(236, 1e-9).x, k)


def two_kinds(k: int) -> None:
    """Clusters of 200 atoms."""
    start = start_of(200)
    kinds = (torch.rand(200, generator=torch.Generator().manual_seed(0)) < 0.2).long()
    i, j = torch.triu_indices(200, 200, 1)
    length = torch.tensor([[1.0, 0.8], [0.8, 0.88]])[kinds[i], kinds[j]]
    depth = torch.tensor([[1.0, 1.5], [1.5, 0.5]])[kinds[i], kinds[j]]

    def glass(x: Tensor) -> Tensor:
        s = (length**2 / (x[i] - x[j]).square().sum(1)) ** 3
        return (4 * depth * (s * s - s)).sum()

    found = hesse.minimize(glass, start, rtol=0.0, atol=1e-9)
    masses = torch.tensor([1.0, 3.0])
    print_modes("glass of two kinds, 200 atoms", glass, found.x, k, masses[kinds])

    layers = (start * 2**0.5 / 1.1).round().long()[:, 0] % 2
    rest = (start[i] - start[j]).norm(dim=1)
    stiff = torch.tensor([[10.0, 40.0], [40.0, 3.0]])[layers[i], layers[j]] / (1 + 4 * (rest > 1.3))
    near = rest < 1.7

    def crystal(x: Tensor) -> Tensor:
        return (stiff * ((x[i] - x[j]).norm(dim=1) - rest) ** 2)[near].sum() / 2

    print_modes("crystal of two kinds, 200 atoms", crystal, start, k, masses[layers])


def print_modes(name: str, f: Any, x: Tensor, k: int, masses: Tensor | None = None) -> None:
    """Products for the lowest modes, and their errors."""
    exact = modes(f, x, masses)
    print(f"\n{name}, {k} modes, of all by {exact.products} products")
    for way, size in (("springs", None), ("block Lanczos", 6)):
        for rtol in (1e-3, 1e-4):
            counts, error = [], 0.0
            for seed in range(4 if size is None else 1):
                generator = torch.Generator().manual_seed(seed)
                options: Any = {"rtol": rtol, "generator": generator, "block_size": size}
                got = modes(f, x, masses, k, **options)
                counts.append(got.products)
                error = max(error, float((got.eigenvalues - exact.eigenvalues[:k]).abs().max()))
            print(f"  {way:14} rtol {rtol:g}: {counts} products, error at most {error:.0e}")


def surface() -> None:
    A = torch.tensor([-200.0, -100.0, -170.0, 15.0])
    a, b, c = torch.tensor([[-1, -1, -6.5, 0.7], [0, 0, 11, 0.6], [-10, -10, -6.5, 0.7]])
    x0, y0 = torch.tensor([[1, 0, -0.5, -1], [0, 0.5, 1.5, 1]])

    def f(p: Tensor) -> Tensor:
        x, y = p[0] - x0, p[1] - y0
        return (A * torch.exp(a * x**2 + b * x * y + c * y**2)).sum()

    def inside(p: Tensor) -> bool:
        return bool(-1.7 < p[0] < 1.2) and bool(-0.5 < p[1] < 2.0)

    print("\nMueller and Brown: from the minimum, along the lowest mode")
    for start in MINIMA:
        x = hesse.minimize(f, torch.tensor(start), rtol=0.0, atol=1e-9).x
        u = modes(f, x, rigid="none").vectors[:, 0]
        for sign in (1.0, -1.0):
            found = saddle(f, x, sign * u, domain=inside, radius=0.03)
            p = f"({float(found.x[0]):7.4f}, {float(found.x[1]):7.4f})"
            print(f"  {start} {'+' if sign > 0 else '-'}: {found.status.name:10} {p} "
                  f"E {found.fun:9.4f}, {found.nit} steps, {found.nhev} products")  # fmt: skip


def transition_states(searches: int) -> None:
    x, start, products = minimum(7).x, time.process_time(), 0
    energies: Counter[float] = Counter()
    for seed in range(searches):
        noise = torch.randn(7, 3, generator=torch.Generator().manual_seed(seed))
        found = saddle(lennard_jones, x + 0.25 * noise)
        products += found.nhev
        if found.success:
            energies[round(found.fun, 3)] += 1
    seconds = time.process_time() - start
    print(f"\nLJ7: {energies.total()} of {searches} searches end at a saddle point, "
          f"{products / searches:.0f} products each, {seconds:.0f} s")  # fmt: skip
    print("  energies:", ", ".join(f"{e} ({count})" for e, count in sorted(energies.items())))


def responses() -> None:
    def f(x: Tensor, q: Tensor) -> Tensor:
        return lennard_jones(x) + q * (x[0] - x[1]).square().sum()

    def at(q: float) -> Tensor:
        start = minimum(7).x
        return hesse.minimize(
            lambda x: f(x, torch.tensor(q)), start, "trust-cg", rtol=0.0, atol=1e-11
        ).x

    x, h = at(1.0), 1e-4
    got = response(f, x, torch.tensor(1.0))
    moved = (torch.pdist(at(1.0 + h)) - torch.pdist(at(1.0 - h))) / (2 * h)
    linear = (torch.pdist(x + h * got.derivative) - torch.pdist(x - h * got.derivative)) / (2 * h)
    error = float((moved - linear).abs().max())
    print(f"\nresponse of distances: error {error:.0e} of {float(moved.abs().max()):.3f}, "
          f"{got.products} products")  # fmt: skip
