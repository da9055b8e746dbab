# SPDX-License-Identifier: Apache-2.0
"""Differential and integral equations, and energies, on grids of any size.

n = p^2 inner points of the unit square, or n of the unit interval, with spacing h.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from hesse.testing.problems import Problem
from hesse.testing.smooth.build import count, full, indices, least_squares, sized, smooth


def _laplacian(u: Tensor) -> Tensor:
    """4 u less its four neighbours, zero outside of the grid."""
    v = pad(u, (1, 1, 1, 1))
    return 4 * u - v[:-2, 1:-1] - v[2:, 1:-1] - v[1:-1, :-2] - v[1:-1, 2:]


def bratu(p: int = 6, strength: float = 4.0) -> Problem:
    """The equations -Laplace(u) = strength exp u, u = 0 at the border, as squares; u0 = 0.

    More 1990, A collection of nonlinear model problems; CUTEst BRATU2D. A solution exists for
    strengths up to 6.8.
    """

    def r(x: Tensor) -> Tensor:
        u = x.view(p, p)
        return (_laplacian(u) - strength / (p + 1) ** 2 * torch.exp(u)).reshape(-1)

    return least_squares(sized("bratu", p * p), r, full(p * p, 0), 0.0)


def bratu_energy(p: int = 6, strength: float = 4.0) -> Problem:
    """|grad u|^2 / 2 - strength exp u, whose stationary points solve the equation of `bratu`.

    The lower solution is a local minimum; the energy falls without end far from it.
    """

    def f(x: Tensor) -> Tensor:
        u = x.view(p, p)
        return 0.5 * (u * _laplacian(u)).sum() - strength / (p + 1) ** 2 * torch.exp(u).sum()

    return smooth(sized("bratu_energy", p * p), f, full(p * p, 0), local_minima=(-math.inf,))


def _area(border: Tensor, x: Tensor) -> Tensor:
    """The area of a surface over triangles whose inner heights are x, the outer those of border."""
    p = border.shape[0] - 2
    u, h = border.to(x).clone(), 1 / (p + 1)
    u[1:-1, 1:-1] = x.view(p, p)
    east, north = (u[1:, :] - u[:-1, :]) / h, (u[:, 1:] - u[:, :-1]) / h
    lower = torch.sqrt(1 + east[:, :-1] ** 2 + north[:-1, :] ** 2)
    upper = torch.sqrt(1 + east[:, 1:] ** 2 + north[1:, :] ** 2)
    return 0.5 * h**2 * (lower.sum() + upper.sum())


def minimal_surface_plane(p: int = 6) -> Problem:
    """The minimal surface whose border lies in the plane 2 s - t: that plane, of area sqrt 6.

    CUTEst MINSURF's energy with a border that has a closed form.
    """
    t = torch.linspace(0, 1, p + 2, dtype=torch.float64)
    plane = 2 * t[:, None] - t
    minimiser = plane[1:-1, 1:-1].reshape(-1).clone()
    name = sized("minimal_surface_plane", p * p)
    return smooth(name, lambda x: _area(plane, x), full(p * p, 0), 6**0.5, minimiser)


def minimal_surface_saddle(p: int = 6) -> Problem:
    """The minimal surface over the border 4 (s - t) (s + t - 1), from u0 = 0."""
    t = torch.linspace(0, 1, p + 2, dtype=torch.float64)
    border = 4 * (t[:, None] - t) * (t[:, None] + t - 1)
    name = sized("minimal_surface_saddle", p * p)
    return smooth(name, lambda x: _area(border, x), full(p * p, 0))


def string(n: int = 20) -> Problem:
    """sum (u_{i+1} - u_i)^2 / (2 h) - 5 h sum u: a string under load, by its closed form.

    The differences of t (1 - t) are exact: the minimum is at 5 t (1 - t) / 2.
    """
    h = 1 / (n + 1)

    def f(x: Tensor) -> Tensor:
        u = pad(x, (1, 1))
        return ((u[1:] - u[:-1]) ** 2).sum() / (2 * h) - 5 * h * x.sum()

    t = h * count(n)
    solution = 2.5 * t * (1 - t)
    return smooth(sized("string", n), f, full(n, 0), -2.5 * h * float(solution.sum()), solution)


def double_well_chain(n: int = 20, width: float = 0.2) -> Problem:
    """width u'^2 / 2 + (1 - u^2)^2 / (4 width) on a ring, from cos(t) / 2: 0 at +-1.

    Ginzburg & Landau's energy; u = 0 is a saddle point with many negative directions.
    """
    h = 1 / n

    def f(x: Tensor) -> Tensor:
        slope = (x.roll(-1) - x) / h
        return h * (width / 2 * slope**2 + (1 - x**2) ** 2 / (4 * width)).sum()

    start = 0.1 + torch.cos(2 * math.pi * count(n) / n) / 2
    return smooth(sized("double_well_chain", n), f, start, 0.0, full(n, 1))


def chandrasekhar(n: int = 20, c: float = 0.9) -> Problem:
    """h_i (1 - c / (2 n) sum m_i h_j / (m_i + m_j)) = 1, m_i = (i - 1/2) / n; h0 = 1.

    Chandrasekhar's H-equation. Kelley 1995, Iterative methods, section 5.6.
    """

    def r(x: Tensor) -> Tensor:
        m = (indices(x) - 0.5) / n
        kernel = m[:, None] / (m[:, None] + m)
        return x * (1 - c / (2 * n) * (kernel @ x)) - 1

    return least_squares(sized("chandrasekhar", n), r, full(n, 1), 0.0)


def troesch(n: int = 20, rho: float = 4.0) -> Problem:
    """u'' = rho sinh(rho u), u(0) = 0, u(1) = 1, with a boundary layer; u0 = 0. Troesch 1976."""
    h = 1 / (n + 1)

    def r(x: Tensor) -> Tensor:
        u = torch.cat([x.new_zeros(1), x, x.new_ones(1)])
        return u[2:] - 2 * x + u[:-2] - h**2 * rho * torch.sinh(rho * x)

    return least_squares(sized("troesch", n), r, full(n, 0), 0.0)


def burgers(n: int = 20, viscosity: float = 0.1) -> Problem:
    """Steady Burgers: u u' = viscosity u'', u(0) = 1, u(1) = 0, by central differences."""
    h = 1 / (n + 1)

    def r(x: Tensor) -> Tensor:
        u = torch.cat([x.new_ones(1), x, x.new_zeros(1)])
        slope, bend = (u[2:] - u[:-2]) / 2, (u[2:] - 2 * x + u[:-2]) / h
        return x * slope - viscosity * bend

    return least_squares(sized("burgers", n), r, 1 - count(n) * h, 0.0)


def problems() -> list[Problem]:
    """All of them, most in two sizes."""
    return [
        *(build(p) for build in (bratu, bratu_energy) for p in (6, 20)),
        *(minimal_surface_plane(p) for p in (6, 20)),
        *(minimal_surface_saddle(p) for p in (6, 20)),
        string(),
        *(double_well_chain(n) for n in (20, 100)),
        *(chandrasekhar(n) for n in (20, 100)),
        *(troesch(n) for n in (20, 100)),
        burgers(),
    ]
