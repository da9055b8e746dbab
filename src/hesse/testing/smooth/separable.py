# SPDX-License-Identifier: Apache-2.0
"""Functions of any number of variables that are sums over variables or pairs, some with one sum.

Source of all: Andrei 2008, An unconstrained optimization test functions collection, Advanced
Modeling and Optimization 10, whose names the docstrings give. a and b are the odd and even
variables. The minima follow in closed form.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hesse.testing.problems import Problem
from hesse.testing.smooth.build import count, full, indices, least_squares, sized, smooth


def raydan_1(n: int = 10) -> Problem:
    """sum i (exp x - x) / 10: n (n + 1) / 20 at 0. Raydan 1."""

    def f(x: Tensor) -> Tensor:
        return indices(x) @ (torch.exp(x) - x) / 10

    return smooth(sized("raydan_1", n), f, full(n, 1), n * (n + 1) / 20, full(n, 0))


def raydan_2(n: int = 10) -> Problem:
    """sum exp x - x: n at 0. Raydan 2."""
    return smooth(
        sized("raydan_2", n), lambda x: (torch.exp(x) - x).sum(), full(n, 1), float(n), full(n, 0)
    )


def diagonal_1(n: int = 10) -> Problem:
    """sum exp x_i - i x_i: at log i; x0 = 1 / n. Diagonal 1."""
    i = count(n)
    least = float((i - i * i.log()).sum())
    return smooth(
        sized("diagonal_1", n),
        lambda x: (torch.exp(x) - indices(x) * x).sum(),
        full(n, 1 / n),
        least,
        i.log(),
    )


def diagonal_2(n: int = 10) -> Problem:
    """sum exp x_i - x_i / i: at -log i; x0 = 1 / i. Diagonal 2."""
    i = count(n)
    least = float(((1 + i.log()) / i).sum())
    return smooth(
        sized("diagonal_2", n),
        lambda x: (torch.exp(x) - x / indices(x)).sum(),
        1 / i,
        least,
        -i.log(),
    )


def diagonal_3(n: int = 10) -> Problem:
    """sum exp x_i - i sin x_i. Diagonal 3."""

    def f(x: Tensor) -> Tensor:
        return (torch.exp(x) - indices(x) * torch.sin(x)).sum()

    return smooth(sized("diagonal_3", n), f, full(n, 1))


def diagonal_4(n: int = 10) -> Problem:
    """sum (a^2 + 100 b^2) / 2. Diagonal 4."""

    def f(x: Tensor) -> Tensor:
        return (x[::2] ** 2 + 100 * x[1::2] ** 2).sum() / 2

    return smooth(sized("diagonal_4", n), f, full(n, 1), 0.0, full(n, 0))


def diagonal_5(n: int = 10) -> Problem:
    """sum log(exp x + exp -x): n log 2 at 0. Diagonal 5."""
    return smooth(
        sized("diagonal_5", n),
        lambda x: torch.logaddexp(x, -x).sum(),
        full(n, 1.1),
        n * math.log(2),
        full(n, 0),
    )


def diagonal_9(n: int = 10) -> Problem:
    """sum over i < n of exp x_i - i x_i, plus 10^4 x_n^2. Diagonal 9."""

    def f(x: Tensor) -> Tensor:
        return (torch.exp(x[:-1]) - indices(x)[:-1] * x[:-1]).sum() + 1e4 * x[-1] ** 2

    i = count(n - 1)
    minimiser = torch.cat([i.log(), full(1, 0)])
    return smooth(sized("diagonal_9", n), f, full(n, 1), float((i - i * i.log()).sum()), minimiser)


def hager(n: int = 10) -> Problem:
    """sum exp x_i - sqrt(i) x_i: at log(i) / 2. Hager."""
    root = count(n).sqrt()
    least = float((root - root * root.log()).sum())
    return smooth(
        sized("hager", n),
        lambda x: (torch.exp(x) - indices(x).sqrt() * x).sum(),
        full(n, 1),
        least,
        root.log(),
    )


def extended_tet(n: int = 10) -> Problem:
    """sum exp(a + 3b - 0.1) + exp(a - 3b - 0.1) + exp(-a - 0.1). Extended three exponential terms.

    sqrt(8) exp(-0.1) a pair, at a = -log(2) / 2, b = 0.
    """

    def f(x: Tensor) -> Tensor:
        a, b = x[::2], x[1::2]
        three = torch.exp(a + 3 * b) + torch.exp(a - 3 * b) + torch.exp(-a)
        return math.exp(-0.1) * three.sum()

    least = math.sqrt(8) * math.exp(-0.1) * n / 2
    return smooth(sized("extended_tet", n), f, full(n, 0.1), least, full(n, -math.log(2) / 2, 0))


def extended_psc1(n: int = 10) -> Problem:
    """r = (a^2 + b^2 + a b, sin a, cos b): 0.773199 a pair. Extended PSC1."""

    def r(x: Tensor) -> Tensor:
        a, b = x[::2], x[1::2]
        return torch.cat([a**2 + b**2 + a * b, torch.sin(a), torch.cos(b)])

    return least_squares(sized("extended_psc1", n), r, full(n, 3, 0.1), round(0.773199 * n / 2, 6))


def extended_himmelblau(n: int = 10) -> Problem:
    """Himmelblau's function of each pair. Extended Himmelblau."""

    def r(x: Tensor) -> Tensor:
        a, b = x[::2], x[1::2]
        return torch.cat([a**2 + b - 11, a + b**2 - 7])

    return least_squares(sized("extended_himmelblau", n), r, full(n, 1), 0.0, full(n, 3, 2))


def extended_white_holst(n: int = 10) -> Problem:
    """r = (10 (b - a^3), 1 - a): a cubic valley. Extended White & Holst."""

    def r(x: Tensor) -> Tensor:
        a, b = x[::2], x[1::2]
        return torch.cat([10 * (b - a**3), 1 - a])

    return least_squares(sized("extended_white_holst", n), r, full(n, -1.2, 1), 0.0, full(n, 1))


def extended_block_diagonal(n: int = 10) -> Problem:
    """r = (a^2 + b^2 - 2, exp(a - 1) - b). Extended block-diagonal BD1."""

    def r(x: Tensor) -> Tensor:
        a, b = x[::2], x[1::2]
        return torch.cat([a**2 + b**2 - 2, torch.exp(a - 1) - b])

    return least_squares(sized("extended_block_diagonal", n), r, full(n, 0.1), 0.0, full(n, 1))


def extended_hiebert(n: int = 10) -> Problem:
    """r = (a - 10, a b - 50000): badly scaled; x0 = 0. Extended Hiebert."""

    def r(x: Tensor) -> Tensor:
        return torch.cat([x[::2] - 10, x[::2] * x[1::2] - 50000])

    return least_squares(sized("extended_hiebert", n), r, full(n, 0), 0.0, full(n, 10, 5000))


def extended_quadratic_penalty(n: int = 10) -> Problem:
    """sum (x_i^2 - 2)^2 over i < n, plus (|x|^2 - 0.5)^2. Extended quadratic penalty QP1."""

    def r(x: Tensor) -> Tensor:
        return torch.cat([x[:-1] ** 2 - 2, (x @ x - 0.5)[None]])

    return least_squares(sized("extended_quadratic_penalty", n), r, full(n, 1))


def perturbed_quadratic(n: int = 10) -> Problem:
    """sum i x_i^2 + (sum x)^2 / 100; x0 = 0.5. Perturbed quadratic."""

    def f(x: Tensor) -> Tensor:
        return indices(x) @ x**2 + x.sum() ** 2 / 100

    return smooth(sized("perturbed_quadratic", n), f, full(n, 0.5), 0.0, full(n, 0))


def generalised_tridiagonal(n: int = 10) -> Problem:
    """sum (x_i + x_{i+1} - 3)^2 + (x_i - x_{i+1} + 1)^4; x0 = 2. Generalized tridiagonal 1."""

    def r(x: Tensor) -> Tensor:
        a, b = x[:-1], x[1:]
        return torch.cat([a + b - 3, (a - b + 1) ** 2])

    known = (0.0, torch.tensor([1.0, 2.0], dtype=torch.float64)) if n == 2 else (None, None)
    return least_squares(sized("generalised_tridiagonal", n), r, full(n, 2), *known)


def full_hessian(n: int = 10) -> Problem:
    """(x_1 - 5)^2 + sum (x_1 + ... + x_i - 1)^2: a full quadratic. Full Hessian FH2."""

    def r(x: Tensor) -> Tensor:
        return torch.cat([x[:1] - 5, torch.cumsum(x, 0)[1:] - 1])

    minimiser = full(n, 0)
    minimiser[0], minimiser[1] = 5, -4
    return least_squares(sized("full_hessian", n), r, full(n, 0.01), 0.0, minimiser)


def hilbert(n: int = 8, shift: float = 0.0) -> Problem:
    """x'(H + shift I) x with the Hilbert matrix H; x0 = -3. CUTEst HILBERTA, HILBERTB."""

    def f(x: Tensor) -> Tensor:
        i = indices(x)
        return x @ (x / (i[:, None] + i - 1)).sum(1) + shift * x @ x

    return smooth(f"hilbert(n={n}, shift={shift:g})", f, full(n, -3), 0.0, full(n, 0))


def problems() -> list[Problem]:
    """All of them."""
    diagonal = [raydan_1, raydan_2, diagonal_1, diagonal_2, diagonal_3, diagonal_4, diagonal_5]
    pairs = [extended_tet, extended_psc1, extended_himmelblau, extended_white_holst]
    pairs += [extended_block_diagonal, extended_hiebert]
    full_ones = [extended_quadratic_penalty, perturbed_quadratic, full_hessian]
    others = [diagonal_9, hager, generalised_tridiagonal]
    builders = [*diagonal, *pairs, *full_ones, *others]
    return [*(build() for build in builders), hilbert(), hilbert(10, 5.0)]
