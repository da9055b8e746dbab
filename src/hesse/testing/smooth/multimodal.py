# SPDX-License-Identifier: Apache-2.0
"""Functions of any number of variables from the literature on global minimisation.

The starts are close enough to the lowest minimum for a descent method to reach it, unless the
docstring says otherwise. Sources: Jamil & Yang 2013, arXiv:1308.4008 (J with its number), and as
named.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hesse.testing.problems import Problem
from hesse.testing.smooth.build import count, full, indices, least_squares, sized, smooth


def sphere(n: int = 10) -> Problem:
    """sum x^2. De Jong 1975."""
    return smooth(sized("sphere", n), lambda x: x @ x, count(n) / n, 0.0, full(n, 0))


def styblinski_tang(n: int = 10) -> Problem:
    """sum (x^4 - 16 x^2 + 5 x) / 2; -39.1661657 n at -2.903534. J144."""

    def f(x: Tensor) -> Tensor:
        return (x**4 - 16 * x**2 + 5 * x).sum() / 2

    return smooth(sized("styblinski_tang", n), f, full(n, -2), -39.16616570377142 * n)


def rastrigin(n: int = 10) -> Problem:
    """10 n + sum x^2 - 10 cos(2 pi x); x0 = 0.2. Rastrigin 1974."""

    def f(x: Tensor) -> Tensor:
        return 10 * n + (x**2 - 10 * torch.cos(2 * math.pi * x)).sum()

    return smooth(sized("rastrigin", n), f, full(n, 0.2), 0.0, full(n, 0))


def griewank(n: int = 10) -> Problem:
    """1 + |x|^2 / 4000 - prod cos(x_i / sqrt i); x0 = 0.5. Griewank 1981."""

    def f(x: Tensor) -> Tensor:
        return 1 + x @ x / 4000 - torch.cos(x / indices(x).sqrt()).prod()

    return smooth(sized("griewank", n), f, full(n, 0.5), 0.0, full(n, 0))


def levy(n: int = 10) -> Problem:
    """sin^2(pi w_1) + sum (w - 1)^2 (...), w = 1 + (x - 1)/4; x0 = 0.5. Levy & Montalvo 1985."""

    def f(x: Tensor) -> Tensor:
        w = 1 + (x - 1) / 4
        inner = (w[:-1] - 1) ** 2 * (1 + 10 * torch.sin(math.pi * w[:-1] + 1) ** 2)
        last = (w[-1] - 1) ** 2 * (1 + torch.sin(2 * math.pi * w[-1]) ** 2)
        return torch.sin(math.pi * w[0]) ** 2 + inner.sum() + last

    return smooth(sized("levy", n), f, full(n, 0.5), 0.0, full(n, 1))


def zakharov(n: int = 10) -> Problem:
    """r = (x, s, s^2), s = sum i x_i / 2. J173."""

    def r(x: Tensor) -> Tensor:
        s = indices(x) @ x / 2
        return torch.cat([x, torch.stack([s, s**2])])

    return least_squares(sized("zakharov", n), r, full(n, 1), 0.0, full(n, 0))


def dixon_price(n: int = 10) -> Problem:
    """(x_1 - 1)^2 + sum i (2 x_i^2 - x_{i-1})^2; 0 at x_i = 2^(-(2^i - 2)/2^i). J48."""

    def r(x: Tensor) -> Tensor:
        return torch.cat([x[:1] - 1, indices(x)[1:].sqrt() * (2 * x[1:] ** 2 - x[:-1])])

    minimiser = 2.0 ** (-(2.0 ** count(n) - 2) / 2.0 ** count(n))
    return least_squares(
        sized("dixon_price", n), r, full(n, 1), 0.0, minimiser, local_minima=(2 / 3,)
    )


def trid(n: int = 10) -> Problem:
    """sum (x_i - 1)^2 - sum x_i x_{i-1}; -n (n + 4) (n - 1) / 6 at i (n + 1 - i). J150."""

    def f(x: Tensor) -> Tensor:
        return ((x - 1) ** 2).sum() - x[1:] @ x[:-1]

    i = count(n)
    return smooth(sized("trid", n), f, full(n, 0), -n * (n + 4) * (n - 1) / 6, i * (n + 1 - i))


def sum_of_powers(n: int = 6) -> Problem:
    """sum x_i^(2 i): flat to ever higher order. After J93."""

    def f(x: Tensor) -> Tensor:
        return sum((x[i] ** (2 * i + 2) for i in range(1, n)), x[0] ** 2)

    return smooth(sized("sum_of_powers", n), f, full(n, 1), 0.0, full(n, 0))


def rotated_hyper_ellipsoid(n: int = 10) -> Problem:
    """The sum of squares of the partial sums of x. Schwefel 1977, problem 1.2."""
    return least_squares(
        sized("rotated_hyper_ellipsoid", n),
        lambda x: torch.cumsum(x, 0),
        full(n, 1),
        0.0,
        full(n, 0),
    )


def ackley(n: int = 5) -> Problem:
    """Ackley's function with a rounded tip: sqrt(|x|^2 / n + 1e-4). J1, modified to be smooth.

    At 0 it is 20 (1 - exp(-0.002)).
    """

    def f(x: Tensor) -> Tensor:
        radius = torch.sqrt(x @ x / n + 1e-4)
        waves = torch.exp(torch.cos(2 * math.pi * x).mean())
        return -20 * torch.exp(-0.2 * radius) - waves + 20 + math.e

    least = -20 * math.expm1(-0.002)
    return smooth(sized("ackley", n), f, full(n, 0.1), least, full(n, 0))


def exponential(n: int = 10) -> Problem:
    """-exp(-|x|^2 / 2): negative curvature away from the minimum. J54."""
    return smooth(
        sized("exponential", n), lambda x: -torch.exp(-x @ x / 2), full(n, 0.5), -1.0, full(n, 0)
    )


def schaffer(n: int = 5) -> Problem:
    """Schaffer's F6 of the norm: 1/2 + (sin^2|x| - 1/2) / (1 + |x|^2 / 1000)^2. J136."""

    def f(x: Tensor) -> Tensor:
        radius = torch.sqrt(x @ x)
        return 0.5 + (torch.sin(radius) ** 2 - 0.5) / (1 + 0.001 * radius**2) ** 2

    return smooth(sized("schaffer", n), f, full(n, 0.5), 0.0)


def problems() -> list[Problem]:
    """All of them, some in two sizes."""
    return [
        sphere(),
        *(styblinski_tang(n) for n in (10, 200)),
        *(rastrigin(n) for n in (10, 100)),
        *(griewank(n) for n in (10, 50)),
        *(levy(n) for n in (10, 100)),
        *(zakharov(n) for n in (10, 50)),
        *(dixon_price(n) for n in (10, 50)),
        *(trid(n) for n in (10, 50)),
        sum_of_powers(),
        *(rotated_hyper_ellipsoid(n) for n in (10, 100)),
        ackley(),
        exponential(),
        schaffer(),
    ]
