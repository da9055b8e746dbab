# SPDX-License-Identifier: Apache-2.0
"""Burgers, convection, reaction, wave and Poisson: residuals, conditions and exact solutions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.pinn.network import Jet

Values = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Equation:
    """An equation on a rectangle of (t, x), with conditions on edges of it.

    Without `is_periodic`, u is the exact solution on the edges in x; with it, u is equal on both.
    """

    name: str
    domain: tuple[tuple[float, float], tuple[float, float]]
    inside: Callable[[Jet, Tensor, Tensor], Tensor]
    """What is zero inside, of the jet, t and x."""
    exact: Values
    """u(t, x)."""
    is_periodic: bool = False
    starts_at_rest: bool = False
    """Whether u_t = 0 at the start."""
    ends: bool = False
    """Whether u is given on the last edge in t too."""


def burgers(viscosity: float = 0.01) -> Equation:
    """u_t + u u_x = 0.01 u_xx with u(0, x) = -sin(pi x), periodic on [-1, 1]."""
    return Equation(
        "burgers",
        ((0.0, 1.0), (-1.0, 1.0)),
        lambda u, _t, _x: u.t + u.u * u.x - viscosity * u.xx,
        lambda t, x: cole_hopf(t, x, viscosity),
        is_periodic=True,
    )


def cole_hopf(t: Tensor, x: Tensor, viscosity: float, nodes: int = 200) -> Tensor:
    """Burgers' solution from -sin(pi x), by Gauss-Hermite quadrature, float64.

    u = -int sin(pi y) w(y) e^(-z^2) dz / int w(y) e^(-z^2) dz with y = x - 2 sqrt(nu t) z and
    w(y) = exp(-cos(pi y) / (2 pi nu)).
    """
    z, weights = np.polynomial.hermite.hermgauss(nodes)
    z, weights = torch.from_numpy(z), torch.from_numpy(weights)
    t, x = t.double(), x.double()
    y = x[..., None] - 2 * torch.sqrt(viscosity * t)[..., None] * z
    exponent = -torch.cos(math.pi * y) / (2 * math.pi * viscosity)
    w = weights * torch.exp(exponent - exponent.amax(-1, keepdim=True))
    return -(torch.sin(math.pi * y) * w).sum(-1) / w.sum(-1)


def convection(speed: float = 40.0) -> Equation:
    """u_t + 40 u_x = 0 with u(0, x) = sin x, periodic on [0, 2 pi]."""
    return Equation(
        "convection",
        ((0.0, 1.0), (0.0, 2 * math.pi)),
        lambda u, _t, _x: u.t + speed * u.x,
        lambda t, x: torch.sin(x - speed * t),
        is_periodic=True,
    )


def reaction(rate: float = 5.0) -> Equation:
    """u_t = 5 u (1 - u) from a Gaussian, periodic on [0, 2 pi]."""

    def exact(t: Tensor, x: Tensor) -> Tensor:
        h = torch.exp(-((x - math.pi) ** 2) / (2 * (math.pi / 4) ** 2))
        e = h * torch.exp(rate * t)
        return e / (e + 1 - h)

    return Equation(
        "reaction",
        ((0.0, 1.0), (0.0, 2 * math.pi)),
        lambda u, _t, _x: u.t - rate * u.u * (1 - u.u),
        exact,
        is_periodic=True,
    )


def wave() -> Equation:
    """u_tt = 4 u_xx on [0, 1] from sin(pi x) + sin(5 pi x) / 2, at rest."""

    def exact(t: Tensor, x: Tensor) -> Tensor:
        low = torch.sin(math.pi * x) * torch.cos(2 * math.pi * t)
        return low + 0.5 * torch.sin(5 * math.pi * x) * torch.cos(10 * math.pi * t)

    return Equation(
        "wave",
        ((0.0, 1.0), (0.0, 1.0)),
        lambda u, _t, _x: u.tt - 4 * u.xx,
        exact,
        starts_at_rest=True,
    )


def poisson() -> Equation:
    """u_tt + u_xx = f on the square [-1, 1]^2, for u = sin(pi t) sin(pi x)."""

    def exact(t: Tensor, x: Tensor) -> Tensor:
        return torch.sin(math.pi * t) * torch.sin(math.pi * x)

    return Equation(
        "poisson",
        ((-1.0, 1.0), (-1.0, 1.0)),
        lambda u, t, x: u.tt + u.xx + 2 * math.pi**2 * exact(t, x),
        exact,
        ends=True,
    )


EQUATIONS: dict[str, Callable[[], Equation]] = {
    make.__name__: make for make in (burgers, convection, reaction, wave, poisson)
}
"""By name."""
