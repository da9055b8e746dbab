# SPDX-License-Identifier: Apache-2.0
"""Energies of points in space: singular at collisions, flat along rotations and translations.

The Hessian at a minimum is singular. The starts are the corners of a cuboid, slightly displaced;
from there a descent method ends in one of several minima if there are more than four points.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hesse.testing.problems import Problem
from hesse.testing.smooth.build import count, smooth


def _start(points: int, spacing: float) -> Tensor:
    """Points of a cubic lattice, displaced by a tenth of the spacing."""
    i = torch.arange(points)
    lattice = torch.stack([i % 2, i // 2 % 2, i // 4], 1).to(torch.float64)
    shake = torch.sin(3.0 * count(3 * points)).view(points, 3)
    return (spacing * (lattice + 0.1 * shake)).reshape(-1)


def _distances(x: Tensor) -> Tensor:
    """The distances of all pairs."""
    points = x.view(-1, 3)
    i, j = torch.triu_indices(len(points), len(points), 1, device=x.device)
    return (points[i] - points[j]).square().sum(1).sqrt()


_LENNARD_JONES = {2: -1.0, 3: -3.0, 4: -6.0, 5: -9.103852, 6: -12.712062, 7: -16.505384}
_LENNARD_JONES |= {8: -19.821489, 13: -44.326801}
_MORSE_6 = {2: -1.0, 3: -3.0, 4: -6.0, 5: -9.044930, 6: -12.487810, 7: -16.207580}
_THOMSON = {2: 0.5, 3: 3**0.5, 4: 6 * math.sqrt(3 / 8), 6: 12 / 2**0.5 + 1.5, 12: 49.165253058}
_FEW = 4  # so many points have one minimum


def lennard_jones(points: int = 4) -> Problem:
    """sum 4 (d^-12 - d^-6). Minima: Cambridge Cluster Database; Northby 1987, doi:10.1063/1.453492.

    f = -1, -3, -6 for 2, 3, 4 points, where all distances are 2^(1/6).
    """

    def f(x: Tensor) -> Tensor:
        s = _distances(x) ** -6
        return 4 * (s**2 - s).sum()

    local = () if points <= _FEW else (math.nan,)
    name = f"lennard_jones(points={points})"
    return smooth(name, f, _start(points, 1.2), _LENNARD_JONES.get(points), local_minima=local)


def morse(points: int = 4, rho: float = 6.0) -> Problem:
    """sum e (e - 2), e = exp(rho (1 - d)). Minima for rho = 6: Doye & Wales 1997."""

    def f(x: Tensor) -> Tensor:
        e = torch.exp(rho * (1 - _distances(x)))
        return (e * (e - 2)).sum()

    local = () if points <= _FEW else (math.nan,)
    known = _MORSE_6.get(points) if rho == 6.0 else None
    name = f"morse(points={points}, rho={rho:g})"
    return smooth(name, f, _start(points, 1.1), known, local_minima=local)


def thomson(points: int = 6) -> Problem:
    """Charges on a sphere: sum 1 / d of the normalised points. Thomson 1904.

    0.5, sqrt 3, 3.674235 and 9.985281 for 2, 3, 4 and 6 points; 49.165253 for the icosahedron.
    """

    def f(x: Tensor) -> Tensor:
        on_sphere = x.view(-1, 3)
        on_sphere = on_sphere / on_sphere.square().sum(1, keepdim=True).sqrt()
        return (1 / _distances(on_sphere)).sum()

    i = count(points) - 0.5
    height, angle = 1 - 2 * i / points, math.pi * (1 + 5**0.5) * i  # a spiral
    ring = (1 - height**2).sqrt()
    start = torch.stack([ring * angle.cos(), ring * angle.sin(), height], 1).reshape(-1)
    name = f"thomson(points={points})"
    return smooth(name, f, start, _THOMSON.get(points))


def problems() -> list[Problem]:
    """All of them, in several sizes."""
    return [
        *(lennard_jones(points) for points in (2, 3, 4, 6, 13)),
        *(morse(points) for points in (3, 4, 6)),
        *(thomson(points) for points in (2, 3, 4, 6, 12)),
    ]
