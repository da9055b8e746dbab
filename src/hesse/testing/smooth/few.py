# SPDX-License-Identifier: Apache-2.0
"""Well-known functions of two to ten variables that are not in More, Garbow & Hillstrom."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hesse.testing.problems import Problem
from hesse.testing.smooth.build import full, least_squares, smooth, vector


def himmelblau() -> Problem:
    """(x^2 + y - 11)^2 + (x + y^2 - 7)^2. Himmelblau 1972, Applied Nonlinear Programming."""

    def r(x: Tensor) -> Tensor:
        return torch.stack([x[0] ** 2 + x[1] - 11, x[0] + x[1] ** 2 - 7])

    return least_squares("himmelblau", r, vector(1, 1), 0.0, vector(3, 2))


def booth() -> Problem:
    """(x + 2 y - 7)^2 + (2 x + y - 5)^2. Jamil & Yang 2013, arXiv:1308.4008, function 17."""

    def r(x: Tensor) -> Tensor:
        return torch.stack([x[0] + 2 * x[1] - 7, 2 * x[0] + x[1] - 5])

    return least_squares("booth", r, vector(-5, 5), 0.0, vector(1, 3))


def matyas() -> Problem:
    """0.26 (x^2 + y^2) - 0.48 x y. Jamil & Yang 2013, arXiv:1308.4008, function 71."""
    return smooth(
        "matyas", lambda x: 0.26 * x @ x - 0.48 * x[0] * x[1], vector(8, -3), 0.0, vector(0, 0)
    )


def three_hump_camel() -> Problem:
    """2 x^2 - 1.05 x^4 + x^6/6 + x y + y^2. Jamil & Yang 2013, arXiv:1308.4008, function 29."""

    def f(x: Tensor) -> Tensor:
        a, b = x
        return 2 * a**2 - 1.05 * a**4 + a**6 / 6 + a * b + b**2

    return smooth("three_hump_camel", f, vector(0.5, 1), 0.0, vector(0, 0), (0.298638,))


def six_hump_camel() -> Problem:
    """(4 - 2.1 x^2 + x^4/3) x^2 + x y + 4 (y^2 - 1) y^2. Dixon & Szego 1978; -1.0316."""

    def f(x: Tensor) -> Tensor:
        a, b = x
        return (4 - 2.1 * a**2 + a**4 / 3) * a**2 + a * b + 4 * (b**2 - 1) * b**2

    return smooth("six_hump_camel", f, vector(0.5, -0.5), -1.0316284535, None, (-0.2154638,))


def branin() -> Problem:
    """Branin's function, least 5 / (4 pi) at (pi, 2.275). Branin 1972, doi:10.1147/rd.165.0504."""

    def f(x: Tensor) -> Tensor:
        a, b = x
        bowl = b - 5.1 / (4 * math.pi**2) * a**2 + 5 / math.pi * a - 6
        return bowl**2 + 10 * (1 - 1 / (8 * math.pi)) * torch.cos(a) + 10

    return smooth("branin", f, vector(2.5, 3), 5 / (4 * math.pi), vector(math.pi, 2.275))


def goldstein_price() -> Problem:
    """A product of two polynomials; 3 at (0, -1). Goldstein & Price 1971, doi:10.2307/2005219."""

    def f(x: Tensor) -> Tensor:
        a, b = x
        left = 19 - 14 * a + 3 * a**2 - 14 * b + 6 * a * b + 3 * b**2
        right = 18 - 32 * a + 12 * a**2 + 48 * b - 36 * a * b + 27 * b**2
        return (1 + (a + b + 1) ** 2 * left) * (30 + (2 * a - 3 * b) ** 2 * right)

    return smooth("goldstein_price", f, vector(0.2, -0.8), 3.0, vector(0, -1), (30.0, 84.0, 840.0))


def mccormick() -> Problem:
    """sin(x + y) + (x - y)^2 - 1.5 x + 2.5 y + 1. McCormick 1972; -1.9133 at (-0.547, -1.547)."""

    def f(x: Tensor) -> Tensor:
        a, b = x
        return torch.sin(a + b) + (a - b) ** 2 - 1.5 * a + 2.5 * b + 1

    x = vector(0.5 - math.pi / 3, -0.5 - math.pi / 3)
    return smooth("mccormick", f, vector(0, 0), -math.sqrt(3) / 2 - math.pi / 3, x)


def zettl() -> Problem:
    """(x^2 + y^2 - 2 x)^2 + x / 4. Zettl 1970; -0.003791 at (-0.0299, 0)."""

    def f(x: Tensor) -> Tensor:
        return (x @ x - 2 * x[0]) ** 2 + x[0] / 4

    return smooth("zettl", f, vector(1, 1), -0.00379123)


def cube() -> Problem:
    """r = (x - 1, 10 (y - x^3)). Leon 1966; CUTEst CUBE."""

    def r(x: Tensor) -> Tensor:
        return torch.stack([x[0] - 1, 10 * (x[1] - x[0] ** 3)])

    return least_squares("cube", r, vector(-1.2, 1), 0.0, vector(1, 1))


def cliff() -> Problem:
    """((x - 3)/100)^2 - (x - y) + exp(20 (x - y)). CUTEst CLIFF (Buckley problem 206)."""

    def f(x: Tensor) -> Tensor:
        d = x[0] - x[1]
        return ((x[0] - 3) / 100) ** 2 - d + torch.exp(20 * d)

    d = -math.log(20) / 20
    return smooth("cliff", f, vector(0, -1), 0.05 - d, vector(3, 3 - d))


def sisser() -> Problem:
    """3 x^4 - 2 x^2 y^2 + 3 y^4: the Hessian at 0 is zero. CUTEst SISSER (Buckley 216)."""

    def f(x: Tensor) -> Tensor:
        a, b = x
        return 3 * a**4 - 2 * (a * b) ** 2 + 3 * b**4

    return smooth("sisser", f, vector(1, 0.1), 0.0, vector(0, 0))


def denschnb() -> Problem:
    """(x - 2)^2 + ((x - 2) y)^2 + (y + 1)^2. Dennis & Schnabel 1983; CUTEst DENSCHNB."""

    def r(x: Tensor) -> Tensor:
        a, b = x
        return torch.stack([a - 2, (a - 2) * b, b + 1])

    return least_squares("denschnb", r, vector(1, 1), 0.0, vector(2, -1))


def denschnc() -> Problem:
    """r = (-2 + x^2 + y^2, -2 + exp(x - 1) + y^3). Dennis & Schnabel 1983, example 6.5.1."""

    def r(x: Tensor) -> Tensor:
        a, b = x
        return torch.stack([-2 + a**2 + b**2, -2 + torch.exp(a - 1) + b**3])

    return least_squares("denschnc", r, vector(2, 3), 0.0, vector(1, 1))


def denschnd() -> Problem:
    """Three residuals, singular at the solution. Dennis & Schnabel 1983; CUTEst DENSCHND."""

    def r(x: Tensor) -> Tensor:
        a, b, c = x
        return torch.stack([a**2 + b**3 - c**4, 2 * a * b * c, 2 * a * b - 3 * b * c + a * c])

    return least_squares("denschnd", r, full(3, 10), 0.0, full(3, 0))


def denschne() -> Problem:
    """r = (x, y + y^2, exp z - 1). Dennis & Schnabel 1983; CUTEst DENSCHNE."""

    def r(x: Tensor) -> Tensor:
        return torch.stack([x[0], x[1] + x[1] ** 2, torch.exp(x[2]) - 1])

    return least_squares("denschne", r, vector(2, 3, -8), 0.0, full(3, 0), (1.0,))


def denschnf() -> Problem:
    """Two quadratics; 0 at (1, 1). Dennis & Schnabel 1983; CUTEst DENSCHNF."""

    def r(x: Tensor) -> Tensor:
        a, b = x
        return torch.stack([2 * (a + b) ** 2 + (a - b) ** 2 - 8, 5 * a**2 + (b - 3) ** 2 - 9])

    return least_squares("denschnf", r, vector(2, 0), 0.0, vector(1, 1))


def engval2() -> Problem:
    """Five residuals of three variables; 0 at (0, 0, 1). Engvall 1966; CUTEst ENGVAL2."""

    def r(x: Tensor) -> Tensor:
        a, b, c = x
        return torch.stack(
            [
                a**2 + b**2 + c**2 - 1,
                a**2 + b**2 + (c - 2) ** 2 - 1,
                a + b + c - 1,
                a + b - c + 1,
                a**3 + 3 * b**2 + (5 * c - a + 1) ** 2 - 36,
            ]
        )

    return least_squares("engval2", r, vector(1, 2, 0), 0.0, vector(0, 0, 1))


def hatflda() -> Problem:
    """(x1 - 1)^2 + sum (x_{i-1} - sqrt x_i)^2 with x > 0. Hatfield Polytechnic; CUTEst HATFLDA."""

    def r(x: Tensor) -> Tensor:
        return torch.cat([x[:1] - 1, x[:-1] - torch.sqrt(x[1:])])

    return least_squares("hatflda", r, full(4, 0.1), 0.0, full(4, 1))


def s308() -> Problem:
    """r = (x^2 + x y + y^2, sin x, cos y). Schittkowski 1987, problem 308; 0.773199."""

    def r(x: Tensor) -> Tensor:
        a, b = x
        return torch.stack([a**2 + a * b + b**2, torch.sin(a), torch.cos(b)])

    return least_squares("s308", r, vector(3, 0.1), 0.773199)


def brkmcc() -> Problem:
    """Bracken and McCormick's penalised function. CUTEst BRKMCC; 0.169042."""

    def f(x: Tensor) -> Tensor:
        a, b = x
        g = 1 - a**2 / 4 - b**2
        return (a - 2) ** 2 + (b - 1) ** 2 + 1 / (25 * g) + 5 * (a - 2 * b + 1) ** 2

    return smooth("brkmcc", f, vector(2, 2), 0.169042, None, (-math.inf,))


def maratos() -> Problem:
    """x + 10^6 (x^2 + y^2 - 1)^2: a narrow circular valley. CUTEst MARATOSB, weight 1e-6.

    A step s along the tangent ends s^2 / 2 beside the circle, where f is higher by 10^6 s^4: steps
    are no longer than about 0.01, and every method takes a thousand of them for the half circle.
    """
    return smooth("maratos", lambda x: x[0] + 1e6 * (x @ x - 1) ** 2, vector(1.1, 0.1), -1.00000006)


def hartmann_3() -> Problem:
    """Four Gaussian bells of three variables; -3.86278. Hartman 1973."""
    # fmt: off
    A = vector(3, 10, 30, .1, 10, 35, 3, 10, 30, .1, 10, 35).view(4, 3)
    P = vector(.3689, .1170, .2673, .4699, .4387, .7470,
               .1091, .8732, .5547, .03815, .5743, .8828).view(4, 3)
    # fmt: on
    return _hartmann("hartmann_3", A, P, vector(0.1, 0.5, 0.8), -3.86278)


def hartmann_6() -> Problem:
    """Four Gaussian bells of six variables; -3.32237. Hartman 1973."""
    # fmt: off
    A = vector(10, 3, 17, 3.5, 1.7, 8, .05, 10, 17, .1, 8, 14,
               3, 3.5, 1.7, 10, 17, 8, 17, 8, .05, 10, .1, 14).view(4, 6)
    P = vector(.1312, .1696, .5569, .0124, .8283, .5886, .2329, .4135, .8307, .3736, .1004, .9991,
               .2348, .1451, .3522, .2883, .3047, .6650,
               .4047, .8828, .8732, .5743, .1091, .0381).view(4, 6)
    # fmt: on
    return _hartmann("hartmann_6", A, P, vector(0.2, 0.15, 0.5, 0.3, 0.3, 0.65), -3.32237)


def _hartmann(name: str, A: Tensor, P: Tensor, x: Tensor, minimum: float) -> Problem:
    weights = vector(1, 1.2, 3, 3.2)

    def f(x: Tensor) -> Tensor:
        return -weights.to(x) @ torch.exp(-(A.to(x) * (x - P.to(x)) ** 2).sum(1))

    return smooth(name, f, x, minimum)


def easom() -> Problem:
    """-cos x cos y exp(-(x - pi)^2 - (y - pi)^2): flat but for one well. Easom 1990."""

    def f(x: Tensor) -> Tensor:
        return -torch.cos(x).prod() * torch.exp(-((x - math.pi) ** 2).sum())

    return smooth("easom", f, vector(2.6, 3.6), -1.0, full(2, math.pi))


def bohachevsky() -> Problem:
    """x^2 + 2 y^2 - 0.3 cos(3 pi x) - 0.4 cos(4 pi y) + 0.7. Bohachevsky et al. 1986."""

    def f(x: Tensor) -> Tensor:
        waves = 0.3 * torch.cos(3 * math.pi * x[0]) + 0.4 * torch.cos(4 * math.pi * x[1])
        return x[0] ** 2 + 2 * x[1] ** 2 - waves + 0.7

    return smooth("bohachevsky", f, vector(0.1, 0.1), 0.0, vector(0, 0))


def problems() -> list[Problem]:
    """All of them."""
    squares = [himmelblau, booth, cube, denschnb, denschnc, denschnd, denschne, denschnf]
    squares += [engval2, hatflda, s308]
    plane = [matyas, three_hump_camel, six_hump_camel, branin, goldstein_price, mccormick, zettl]
    others = [cliff, sisser, brkmcc, maratos, hartmann_3, hartmann_6, easom, bohachevsky]
    return [build() for build in [*squares, *plane, *others]]
