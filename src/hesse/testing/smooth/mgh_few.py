# SPDX-License-Identifier: Apache-2.0
"""The problems of More, Garbow & Hillstrom with two to six variables that have no table of data.

Source of all: More, Garbow & Hillstrom 1981, doi:10.1145/355934.355936; the docstrings begin with
their numbers. f is the sum of squares of the residuals.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hesse.testing.problems import Problem
from hesse.testing.smooth.build import count, full, least_squares, vector


def rosenbrock() -> Problem:
    """1. r = (10 (x2 - x1^2), 1 - x1)."""

    def r(x: Tensor) -> Tensor:
        return torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])

    return least_squares("mgh_rosenbrock", r, vector(-1.2, 1), 0.0, vector(1, 1))


def freudenstein_roth() -> Problem:
    """2. Two cubics; 48.9842 is a local minimum at (11.41, -0.8968)."""

    def r(x: Tensor) -> Tensor:
        a, b = x
        return torch.stack([-13 + a + ((5 - b) * b - 2) * b, -29 + a + ((b + 1) * b - 14) * b])

    return least_squares(
        "freudenstein_roth", r, vector(0.5, -2), 0.0, vector(5, 4), local_minima=(48.9842,)
    )


def powell_badly_scaled() -> Problem:
    """3. r = (10^4 x1 x2 - 1, exp(-x1) + exp(-x2) - 1.0001)."""

    def r(x: Tensor) -> Tensor:
        return torch.stack([1e4 * x[0] * x[1] - 1, torch.exp(-x).sum() - 1.0001])

    return least_squares("powell_badly_scaled", r, vector(0, 1), 0.0)


def brown_badly_scaled() -> Problem:
    """4. r = (x1 - 10^6, x2 - 2 10^-6, x1 x2 - 2)."""

    def r(x: Tensor) -> Tensor:
        return torch.stack([x[0] - 1e6, x[1] - 2e-6, x[0] * x[1] - 2])

    return least_squares("brown_badly_scaled", r, vector(1, 1), 0.0, vector(1e6, 2e-6))


def beale() -> Problem:
    """5. r_i = y_i - x1 (1 - x2^i), y = (1.5, 2.25, 2.625)."""

    def r(x: Tensor) -> Tensor:
        y = vector(1.5, 2.25, 2.625).to(x)
        return y - x[0] * (1 - torch.stack([x[1], x[1] ** 2, x[1] ** 3]))

    return least_squares("beale", r, vector(1, 1), 0.0, vector(3, 0.5), local_minima=(math.inf,))


def jennrich_sampson(m: int = 10) -> Problem:
    """6. r_i = 2 + 2i - (exp(i x1) + exp(i x2)); f = 124.362 at x1 = x2 = 0.2578 for m = 10."""

    def r(x: Tensor) -> Tensor:
        i = count(m, x)
        return 2 + 2 * i - (torch.exp(i * x[0]) + torch.exp(i * x[1]))

    return least_squares("jennrich_sampson", r, vector(0.3, 0.4), 124.362)


def helical_valley() -> Problem:
    """7. r = (10 (x3 - 10 theta), 10 (rho - 1), x3), theta the angle of (x1, x2) over 2 pi."""

    def r(x: Tensor) -> Tensor:
        theta = torch.arctan(x[1] / x[0]) / (2 * math.pi) + torch.where(x[0] < 0, 0.5, 0.0)
        return torch.stack([10 * (x[2] - 10 * theta), 10 * (torch.hypot(x[0], x[1]) - 1), x[2]])

    return least_squares("helical_valley", r, vector(-1, 0, 0), 0.0, vector(1, 0, 0))


def box_3d(m: int = 10) -> Problem:
    """12. r_i = exp(-t x1) - exp(-t x2) - x3 (exp(-t) - exp(-10 t)), t = i / 10."""

    def r(x: Tensor) -> Tensor:
        t = count(m, x) / 10
        return (
            torch.exp(-t * x[0])
            - torch.exp(-t * x[1])
            - x[2] * (torch.exp(-t) - torch.exp(-10 * t))
        )

    return least_squares("box_3d", r, vector(0, 10, 20), 0.0, vector(1, 10, 1))


def powell_singular() -> Problem:
    """13. The Jacobian is singular at the solution 0."""

    def r(x: Tensor) -> Tensor:
        a, b, c, d = x
        return torch.stack([a + 10 * b, 5**0.5 * (c - d), (b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2])

    return least_squares("powell_singular", r, vector(3, -1, 0, 1), 0.0, full(4, 0))


def wood() -> Problem:
    """14. Two Rosenbrock functions that are coupled; a saddle point lies near (-1, 1, -1, 1)."""

    def r(x: Tensor) -> Tensor:
        a, b, c, d = x
        first = [10 * (b - a**2), 1 - a, 90**0.5 * (d - c**2), 1 - c]
        return torch.stack([*first, 10**0.5 * (b + d - 2), (b - d) / 10**0.5])

    return least_squares("wood", r, vector(-3, -1, -3, -1), 0.0, full(4, 1))


def brown_dennis(m: int = 20) -> Problem:
    """16. r_i = (x1 + t x2 - exp t)^2 + (x3 + x4 sin t - cos t)^2, t = i / 5."""

    def r(x: Tensor) -> Tensor:
        t = count(m, x) / 5
        first, second = x[0] + t * x[1] - torch.exp(t), x[2] + x[3] * torch.sin(t) - torch.cos(t)
        return first**2 + second**2

    return least_squares("brown_dennis", r, vector(25, 5, -5, -1), 85822.2)


def biggs_exp6(m: int = 13) -> Problem:
    """18. A sum of three exponentials; 5.65565e-3 is a local minimum."""

    def r(x: Tensor) -> Tensor:
        t = count(m, x) / 10
        y = torch.exp(-t) - 5 * torch.exp(-10 * t) + 3 * torch.exp(-4 * t)
        first, second = x[2] * torch.exp(-t * x[0]), x[3] * torch.exp(-t * x[1])
        return first - second + x[5] * torch.exp(-t * x[4]) - y

    local = (5.65565e-3, math.inf)
    return least_squares(
        "biggs_exp6", r, vector(1, 2, 1, 1, 1, 1), 0.0, vector(1, 10, 1, 5, 4, 3), local
    )


def watson(n: int = 6) -> Problem:
    """20. A differential equation by a polynomial of degree n - 1, which is ill-conditioned."""

    def r(x: Tensor) -> Tensor:
        t, j = count(29, x) / 29, torch.arange(n, dtype=x.dtype, device=x.device)
        powers = t[:, None] ** j
        slope = powers[:, :-1] @ (j[1:] * x[1:])
        return torch.cat([slope - (powers @ x) ** 2 - 1, torch.stack([x[0], x[1] - x[0] ** 2 - 1])])

    known = {6: 2.28767e-3, 9: 1.39976e-6, 12: 4.72238e-10}
    return least_squares(f"watson(n={n})", r, full(n, 0), known.get(n))


def problems() -> list[Problem]:
    """All of them."""
    fixed = [rosenbrock, freudenstein_roth, powell_badly_scaled, brown_badly_scaled, beale]
    fixed += [jennrich_sampson, helical_valley, box_3d, powell_singular, wood, brown_dennis]
    return [*(build() for build in fixed), biggs_exp6(), *(watson(n) for n in (6, 9, 12))]
