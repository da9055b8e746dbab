# SPDX-License-Identifier: Apache-2.0
r"""Twelve functions of Dixon & Maany with n = 3m variables.

$$ f(x) = 1 + \sum_{i=1}^n \alpha x_i^2 (i/n)^{k_1}
   + \sum_{i=1}^{n-1} \beta x_i^2 (x_{i+1} + x_{i+1}^2)^2 (i/n)^{k_2}
   + \sum_{i=1}^{2m} \gamma x_i^2 x_{i+m}^4 (i/n)^{k_3}
   + \sum_{i=1}^m \delta x_i x_{i+2m} (i/n)^{k_4} $$

from x0 = 2; the minimum is 1 at 0.

Source: Dixon & Maany 1988, A family of test problems with sparse Hessians for unconstrained
optimization; the constants are those of Andrei 2008 and of CUTEst DIXMAANA to DIXMAANL.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from hesse.testing.problems import Problem
from hesse.testing.smooth.build import full, indices, sized, smooth


class Constants(NamedTuple):
    """alpha, beta, gamma, delta and the powers of i / n."""

    alpha: float
    beta: float
    gamma: float
    delta: float
    powers: tuple[int, int, int, int]


CONSTANTS = {
    "a": Constants(1, 0, 0.125, 0.125, (0, 0, 0, 0)),
    "b": Constants(1, 0.0625, 0.0625, 0.0625, (0, 0, 0, 0)),
    "c": Constants(1, 0.125, 0.125, 0.125, (0, 0, 0, 0)),
    "d": Constants(1, 0.26, 0.26, 0.26, (0, 0, 0, 0)),
    "e": Constants(1, 0, 0.125, 0.125, (1, 0, 0, 1)),
    "f": Constants(1, 0.0625, 0.0625, 0.0625, (1, 0, 0, 1)),
    "g": Constants(1, 0.125, 0.125, 0.125, (1, 0, 0, 1)),
    "h": Constants(1, 0.26, 0.26, 0.26, (1, 0, 0, 1)),
    "i": Constants(1, 0, 0.125, 0.125, (2, 0, 0, 2)),
    "j": Constants(1, 0.0625, 0.0625, 0.0625, (2, 0, 0, 2)),
    "k": Constants(1, 0.125, 0.125, 0.125, (2, 0, 0, 2)),
    "l": Constants(1, 0.26, 0.26, 0.26, (2, 0, 0, 2)),
}


def dixmaan(letter: str, n: int = 15) -> Problem:
    """The function of a letter from a to l; n is a multiple of 3."""
    alpha, beta, gamma, delta, (k1, k2, k3, k4) = CONSTANTS[letter]
    m = n // 3

    def f(x: Tensor) -> Tensor:
        t = indices(x) / n
        diagonal = alpha * (x**2 * t**k1).sum()
        chain = (x[:-1] ** 2 * (x[1:] + x[1:] ** 2) ** 2 * t[:-1] ** k2).sum()
        far = (x[: 2 * m] ** 2 * x[m:] ** 4 * t[: 2 * m] ** k3).sum()
        farthest = (x[:m] * x[2 * m :] * t[:m] ** k4).sum()
        return 1 + diagonal + beta * chain + gamma * far + delta * farthest

    return smooth(sized(f"dixmaan_{letter}", n), f, full(n, 2), 1.0, full(n, 0))


def problems() -> list[Problem]:
    """Each of them with 15 and with 300 variables."""
    return [dixmaan(letter, n) for letter in CONSTANTS for n in (15, 300)]
