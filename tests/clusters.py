# SPDX-License-Identifier: Apache-2.0
"""Clusters of Lennard-Jones atoms at their minima, whose energies are known."""

import math

import torch

import hesse

DOUBLE = torch.float64


def distances2(x):
    r = x.reshape(-1, 3)
    i, j = torch.triu_indices(len(r), len(r), 1)
    return ((r[i] - r[j]) ** 2).sum(1)


def lennard_jones(x):
    s = distances2(x) ** -3
    return 4 * (s * s - s).sum()


def bipyramid():
    a = torch.arange(5, dtype=DOUBLE) * 2 * math.pi / 5
    ring = 0.95 * torch.stack([a.cos(), a.sin(), 0 * a], 1)
    return torch.cat([ring, torch.tensor([[0, 0, 0.6], [0, 0, -0.6]], dtype=DOUBLE)])


def icosahedron():
    p = (1 + 5**0.5) / 2
    corners = [v for s in (1, -1) for t in (p, -p) for v in ([0, s, t], [s, t, 0], [t, 0, s])]
    shell = torch.tensor(corners, dtype=DOUBLE)
    return torch.cat([1.08 * shell / shell[0].norm(), torch.zeros(1, 3, dtype=DOUBLE)])


def truncated_octahedron():
    grid = torch.cartesian_prod(*[torch.arange(-2, 3)] * 3)
    chosen = (grid.sum(1) % 2 != 0) & ((grid**2).sum(1) <= 5)
    return 1.1 / 2**0.5 * grid[chosen].to(DOUBLE)


STARTS = {7: bipyramid, 13: icosahedron, 38: truncated_octahedron}
# Wales & Doye 1997, doi:10.1021/jp970984n.
ENERGIES = {7: -16.505384, 13: -44.326801, 38: -173.928427}


def minimum(atoms):
    x = STARTS[atoms]()
    return hesse.minimize(lennard_jones, x, "trust-cg", rtol=0.0, atol=1e-10)


MINIMA = {atoms: minimum(atoms) for atoms in STARTS}


def pulled(x, q):
    """A spring between two atoms of the cluster, which no rigid motion stretches."""
    r = x.reshape(-1, 3)
    return lennard_jones(x) + q[0] * (r[0] - r[1]).square().sum() + q[1] * (r[2] - r[5]).norm() / 2
