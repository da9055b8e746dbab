# SPDX-License-Identifier: Apache-2.0
"""The problems of More, Garbow & Hillstrom that fit a curve to a table of data.

Source of all: More, Garbow & Hillstrom 1981, doi:10.1145/355934.355936; the docstrings begin with
their numbers. f is the sum of squares of the residuals.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.testing.problems import Problem
from hesse.testing.smooth.build import count, least_squares, vector

# fmt: off
BARD = (.14, .18, .22, .25, .29, .32, .35, .39, .37, .58, .73, .96, 1.34, 2.10, 4.39)
GAUSSIAN = (.0009, .0044, .0175, .0540, .1295, .2420, .3521, .3989,
            .3521, .2420, .1295, .0540, .0175, .0044, .0009)
MEYER = (34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744,
         8261, 7030, 6005, 5147, 4427, 3820, 3307, 2872)
KOWALIK_Y = (.1957, .1947, .1735, .1600, .0844, .0627, .0456, .0342, .0323, .0235, .0246)
KOWALIK_U = (4, 2, 1, .5, .25, .167, .125, .1, .0833, .0714, .0625)
OSBORNE_1 = (.844, .908, .932, .936, .925, .908, .881, .850, .818, .784, .751,
             .718, .685, .658, .628, .603, .580, .558, .538, .522, .506, .490,
             .478, .467, .457, .448, .438, .431, .424, .420, .414, .411, .406)
OSBORNE_2 = (1.366, 1.191, 1.112, 1.013, .991, .885, .831, .847, .786, .725, .746, .679, .608,
             .655, .616, .606, .602, .626, .651, .724, .649, .649, .694, .644, .624, .661,
             .612, .558, .533, .495, .500, .423, .395, .375, .372, .391, .396, .405, .428,
             .429, .523, .562, .607, .653, .672, .708, .633, .668, .645, .632, .591, .559,
             .597, .625, .739, .710, .729, .720, .636, .581, .428, .292, .162, .098, .054)
# fmt: on


def bard() -> Problem:
    """8. r = y - (x1 + u / (v x2 + w x3)); 17.4286 is the value as x2, x3 -> -inf."""

    def r(x: Tensor) -> Tensor:
        u = count(15, x)
        v = 16 - u
        return vector(*BARD).to(x) - (x[0] + u / (v * x[1] + torch.minimum(u, v) * x[2]))

    return least_squares("bard", r, vector(1, 1, 1), 8.21487e-3, local_minima=(17.4286,))


def gaussian() -> Problem:
    """9. r = x1 exp(-x2 (t - x3)^2 / 2) - y, t = (8 - i) / 2."""

    def r(x: Tensor) -> Tensor:
        t = (8 - count(15, x)) / 2
        return x[0] * torch.exp(-x[1] * (t - x[2]) ** 2 / 2) - vector(*GAUSSIAN).to(x)

    return least_squares("gaussian", r, vector(0.4, 1, 0), 1.12793e-8)


def meyer() -> Problem:
    """10. r = x1 exp(x2 / (t + x3)) - y, t = 45 + 5 i: badly scaled."""

    def r(x: Tensor) -> Tensor:
        t = 45 + 5 * count(16, x)
        return x[0] * torch.exp(x[1] / (t + x[2])) - vector(*MEYER).to(x)

    return least_squares("meyer", r, vector(0.02, 4000, 250), 87.9458)


def gulf(m: int = 99) -> Problem:
    """11. r = exp(-|y - x2|^x3 / x1) - t, t = i / 100, y = 25 + (-50 log t)^(2/3)."""

    def r(x: Tensor) -> Tensor:
        t = count(m, x) / 100
        y = 25 + (-50 * torch.log(t)) ** (2 / 3)
        return torch.exp(-((y - x[1]).abs() ** x[2]) / x[0]) - t

    return least_squares("gulf", r, vector(5, 2.5, 0.15), 0.0, vector(50, 25, 1.5))


def kowalik_osborne() -> Problem:
    """15. r = y - x1 (u^2 + u x2) / (u^2 + u x3 + x4)."""

    def r(x: Tensor) -> Tensor:
        y, u = vector(*KOWALIK_Y).to(x), vector(*KOWALIK_U).to(x)
        return y - x[0] * (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3])

    start = vector(0.25, 0.39, 0.415, 0.39)
    return least_squares("kowalik_osborne", r, start, 3.07505e-4, local_minima=(1.02734e-3,))


def osborne_1() -> Problem:
    """17. r = y - (x1 + x2 exp(-t x4) + x3 exp(-t x5)), t = 10 (i - 1)."""

    def r(x: Tensor) -> Tensor:
        t = 10 * (count(33, x) - 1)
        model = x[0] + x[1] * torch.exp(-t * x[3]) + x[2] * torch.exp(-t * x[4])
        return vector(*OSBORNE_1).to(x) - model

    return least_squares("osborne_1", r, vector(0.5, 1.5, -1, 0.01, 0.02), 5.46489e-5)


def osborne_2() -> Problem:
    """19. An exponential and three Gaussian bells, t = (i - 1) / 10."""

    def r(x: Tensor) -> Tensor:
        t = (count(65, x) - 1) / 10
        model = x[0] * torch.exp(-t * x[4])
        for k in (1, 2, 3):
            model = model + x[k] * torch.exp(-((t - x[7 + k]) ** 2) * x[4 + k])
        return vector(*OSBORNE_2).to(x) - model

    start = vector(1.3, 0.65, 0.65, 0.7, 0.6, 3, 5, 7, 2, 4.5, 5.5)
    return least_squares("osborne_2", r, start, 4.01377e-2)


def problems() -> list[Problem]:
    """All of them."""
    return [bard(), gaussian(), meyer(), gulf(), kowalik_osborne(), osborne_1(), osborne_2()]
