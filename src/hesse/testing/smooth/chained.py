# SPDX-License-Identifier: Apache-2.0
"""Families with any number of variables in which neighbours meet, as in CUTEst.

Sources: Gould, Orban & Toint 2015, doi:10.1007/s10589-014-9687-3 (CUTEst), in whose terms the
docstrings name a problem; Toint 1978 and Conn, Gould & Toint 1988, doi:10.1090/S0025-5718-1988-
0929544-3, for many of the functions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hesse.testing.problems import Problem
from hesse.testing.smooth.build import (
    count,
    full,
    indices,
    least_squares,
    shifted,
    sized,
    smooth,
    vector,
)


def chained_rosenbrock(n: int = 10) -> Problem:
    """r = 10 (x_{i+1} - x_i^2), 1 - x_i; x0 = (-1.2, 1, ...). Toint 1978."""

    def r(x: Tensor) -> Tensor:
        return torch.cat([10 * (x[1:] - x[:-1] ** 2), 1 - x[:-1]])

    return least_squares(sized("chained_rosenbrock", n), r, full(n, -1.2, 1), 0.0, full(n, 1))


def genrose(n: int = 10) -> Problem:
    """1 + sum 100 (x_i - x_{i-1}^2)^2 + (x_i - 1)^2, x0_i = i / (n + 1). GENROSE."""

    def f(x: Tensor) -> Tensor:
        return 1 + (100 * (x[1:] - x[:-1] ** 2) ** 2 + (x[1:] - 1) ** 2).sum()

    return smooth(sized("genrose", n), f, count(n) / (n + 1), 1.0, full(n, 1))


def oscillating_path(n: int = 4) -> Problem:
    """(x_1 - 1)^2 / 4 + sum (x_{i+1} - 2 x_i^2 + 1)^2 from (-1, 1, ...): a valley that oscillates.

    Nesterov's first Chebyshev-Rosenbrock function, Gurbuzbalaban & Overton 2012,
    doi:10.1016/j.na.2011.07.062; OSCIPATH.
    """

    def r(x: Tensor) -> Tensor:
        return torch.cat([(x[:1] - 1) / 2, x[1:] - 2 * x[:-1] ** 2 + 1])

    x = full(n, 1)
    x[0] = -1
    return least_squares(sized("oscillating_path", n), r, x, 0.0, full(n, 1))


def _windows(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_i, x_{i+1}, x_{i+2}, x_{i+3} for i = 1, 3, 5, ..., n - 3."""
    return x[:-3:2], x[1:-2:2], x[2:-1:2], x[3::2]


def chained_wood(n: int = 12) -> Problem:
    """Wood's function of x_i, ..., x_{i+3} for odd i, added up. Toint 1978, problem 4.1."""

    def r(x: Tensor) -> Tensor:
        a, b, c, d = _windows(x)
        first = [10 * (b - a**2), 1 - a, 90**0.5 * (d - c**2), 1 - c]
        return torch.cat([*first, 10**0.5 * (b + d - 2), (b - d) / 10**0.5])

    x = torch.cat([vector(-3, -1, -3, -1), full(n - 4, -2, 0)])
    return least_squares(sized("chained_wood", n), r, x, 0.0, full(n, 1))


def chained_powell(n: int = 12) -> Problem:
    """Powell's singular function of x_i, ..., x_{i+3} for odd i, added up. Toint 1978."""

    def r(x: Tensor) -> Tensor:
        a, b, c, d = _windows(x)
        return torch.cat([a + 10 * b, 5**0.5 * (c - d), (b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2])

    return least_squares(sized("chained_powell", n), r, full(n, 3, -1, 0, 1), 0.0, full(n, 0))


def cragg_levy(n: int = 4) -> Problem:
    """Cragg and Levy's function, chained; 0 for n = 4 only. CRAGGLVY."""

    def r(x: Tensor) -> Tensor:
        a, b, c, d = _windows(x)
        first = [(torch.exp(a) - b) ** 2, 10 * (b - c) ** 3]
        return torch.cat([*first, torch.tan(c - d) ** 2, a**4, d - 1])

    x = full(n, 2)
    x[0] = 1
    known = (0.0, vector(0, 1, 1, 1)) if n == 4 else (None, None)
    return least_squares(sized("cragg_levy", n), r, x, *known)


def chained_freudenstein_roth(n: int = 10) -> Problem:
    """Freudenstein and Roth's residuals of x_i, x_{i+1}. FREUROTH."""

    def r(x: Tensor) -> Tensor:
        a, b = x[:-1], x[1:]
        left = -13 + a + ((5 - b) * b - 2) * b
        return torch.cat([left, -29 + a + ((b + 1) * b - 14) * b])

    x = full(n, 0)
    x[0], x[1] = 0.5, -2
    return least_squares(sized("chained_freudenstein_roth", n), r, x)


def generalised_broyden(n: int = 10) -> Problem:
    """sum |(3 - 2 x_i) x_i - x_{i-1} - x_{i+1} + 1|^(7/3), which is twice differentiable.

    Conn, Gould & Toint 1988, problem 15.
    """

    def f(x: Tensor) -> Tensor:
        inner = (3 - 2 * x) * x - shifted(x, 1) - shifted(x, -1) + 1
        return (inner.abs() ** (7 / 3)).sum()

    return smooth(sized("generalised_broyden", n), f, full(n, -1), 0.0)


def broyden_7_diagonal(n: int = 10) -> Problem:
    """sum |(3 - 2 x) x - x_{i-1} - 2 x_{i+1} + 1|^(7/3) + sum |x_i + x_{i+n/2}|^(7/3). BROYDN7D."""

    def f(x: Tensor) -> Tensor:
        inner = (3 - 2 * x) * x - shifted(x, 1) - 2 * shifted(x, -1) + 1
        far = x[: n // 2] + x[n // 2 :]
        return (inner.abs() ** (7 / 3)).sum() + (far.abs() ** (7 / 3)).sum()

    return smooth(sized("broyden_7_diagonal", n), f, full(n, 1))


def arwhead(n: int = 10) -> Problem:
    """sum (x_i^2 + x_n^2)^2 - 4 x_i + 3 over i < n: an arrow. ARWHEAD."""

    def f(x: Tensor) -> Tensor:
        return ((x[:-1] ** 2 + x[-1] ** 2) ** 2 - 4 * x[:-1] + 3).sum()

    minimiser = full(n, 1)
    minimiser[-1] = 0
    return smooth(sized("arwhead", n), f, full(n, 1), 0.0, minimiser)


def engval1(n: int = 10) -> Problem:
    """sum (x_i^2 + x_{i+1}^2)^2 - 4 x_i + 3 over i < n; x0 = 2. ENGVAL1."""

    def f(x: Tensor) -> Tensor:
        return ((x[:-1] ** 2 + x[1:] ** 2) ** 2 - 4 * x[:-1] + 3).sum()

    known = (0.0, vector(1, 0)) if n == 2 else (None, None)
    return smooth(sized("engval1", n), f, full(n, 2), *known)


def edensch(n: int = 36) -> Problem:
    """16 + sum (x_i - 2)^4 + (x_i x_{i+1} - 2 x_{i+1})^2 + (x_{i+1} + 1)^2. EDENSCH."""

    def f(x: Tensor) -> Tensor:
        a, b = x[:-1], x[1:]
        return 16 + ((a - 2) ** 4 + (a * b - 2 * b) ** 2 + (b + 1) ** 2).sum()

    return smooth(sized("edensch", n), f, full(n, 0), {36: 219.28}.get(n))


def liarwhd(n: int = 10) -> Problem:
    """sum 4 (x_i^2 - x_1)^2 + (x_i - 1)^2; x0 = 4. LIARWHD."""

    def r(x: Tensor) -> Tensor:
        return torch.cat([2 * (x**2 - x[0]), x - 1])

    return least_squares(sized("liarwhd", n), r, full(n, 4), 0.0, full(n, 1))


def nondia(n: int = 10) -> Problem:
    """(x_1 - 1)^2 + sum 100 (x_1 - x_{i-1}^2)^2; x0 = -1; 0.989897 is a local minimum. NONDIA."""

    def r(x: Tensor) -> Tensor:
        return torch.cat([x[:1] - 1, 10 * (x[0] - x[:-1] ** 2)])

    return least_squares(sized("nondia", n), r, full(n, -1), 0.0, full(n, 1), (0.989897,))


def tridia(n: int = 10) -> Problem:
    """(x_1 - 1)^2 + sum i (2 x_i - x_{i-1})^2: quadratic; 0 at 2^(1 - i). TRIDIA."""

    def r(x: Tensor) -> Tensor:
        return torch.cat([x[:1] - 1, indices(x)[1:].sqrt() * (2 * x[1:] - x[:-1])])

    return least_squares(sized("tridia", n), r, full(n, 1), 0.0, 2.0 ** (1 - count(n)))


def power(n: int = 10) -> Problem:
    """(sum i x_i^2)^2: the Hessian at 0 is zero. POWER."""
    return smooth(
        sized("power", n), lambda x: (indices(x) @ x**2) ** 2, full(n, 1), 0.0, full(n, 0)
    )


def quartc(n: int = 10) -> Problem:
    """sum (x_i - i)^4; x0 = 2. QUARTC."""
    return smooth(
        sized("quartc", n), lambda x: ((x - indices(x)) ** 4).sum(), full(n, 2), 0.0, count(n)
    )


def dqdrtic(n: int = 10) -> Problem:
    """sum x_i^2 + 100 x_{i+1}^2 + 100 x_{i+2}^2; x0 = 3. DQDRTIC."""

    def f(x: Tensor) -> Tensor:
        return (x[:-2] ** 2 + 100 * x[1:-1] ** 2 + 100 * x[2:] ** 2).sum()

    return smooth(sized("dqdrtic", n), f, full(n, 3), 0.0, full(n, 0))


def cosine(n: int = 10) -> Problem:
    """sum cos(x_i^2 - x_{i+1} / 2) over i < n; 1 - n. COSINE."""
    return smooth(
        sized("cosine", n),
        lambda x: torch.cos(x[:-1] ** 2 - x[1:] / 2).sum(),
        full(n, 1),
        1.0 - n,
        None,
        (math.nan,),
    )


def sinquad(n: int = 5) -> Problem:
    """(x_1 - 1)^4 + (x_n^2 - x_1^2)^2 + sum (sin(x_i - x_n) - x_1^2 + x_i^2)^2. SINQUAD."""

    def r(x: Tensor) -> Tensor:
        inner = torch.sin(x[1:-1] - x[-1]) - x[0] ** 2 + x[1:-1] ** 2
        return torch.cat([(x[:1] - 1) ** 2, x[-1:] ** 2 - x[0] ** 2, inner])

    return least_squares(sized("sinquad", n), r, full(n, 0.1), 0.0, full(n, 1))


def bdqrtic(n: int = 10) -> Problem:
    """r = 3 - 4 x_i, x_i^2 + 2 x_{i+1}^2 + 3 x_{i+2}^2 + 4 x_{i+3}^2 + 5 x_n^2. BDQRTIC."""

    def r(x: Tensor) -> Tensor:
        y = x**2
        quartic = y[:-4] + 2 * y[1:-3] + 3 * y[2:-2] + 4 * y[3:-1] + 5 * y[-1]
        return torch.cat([3 - 4 * x[:-4], quartic])

    return least_squares(sized("bdqrtic", n), r, full(n, 1))


def nondquar(n: int = 10) -> Problem:
    """(x_1 - x_2)^2 + (x_{n-1} + x_n)^2 + sum (x_i + x_{i+1} + x_n)^4. NONDQUAR."""

    def r(x: Tensor) -> Tensor:
        ends = torch.stack([x[0] - x[1], x[-2] + x[-1]])
        return torch.cat([ends, (x[:-2] + x[1:-1] + x[-1]) ** 2])

    return least_squares(sized("nondquar", n), r, full(n, 1, -1), 0.0, full(n, 0))


def fletchcr(n: int = 10) -> Problem:
    """sum 100 (x_{i+1} - x_i + 1 - x_i^2)^2; x0 = 0. FLETCHCR."""

    def r(x: Tensor) -> Tensor:
        return 10 * (x[1:] - x[:-1] + 1 - x[:-1] ** 2)

    return least_squares(sized("fletchcr", n), r, full(n, 0), 0.0, full(n, 1))


def extrosnb(n: int = 5) -> Problem:
    """(x_1 + 1)^2 + sum 100 (x_i - x_{i-1}^2)^2; x0 = -1. EXTROSNB."""

    def r(x: Tensor) -> Tensor:
        return torch.cat([x[:1] + 1, 10 * (x[1:] - x[:-1] ** 2)])

    minimiser = full(n, 1)
    minimiser[0] = -1
    return least_squares(sized("extrosnb", n), r, full(n, -1), 0.0, minimiser)


def toint_gss(n: int = 10) -> Problem:
    """sum (c + x_{i+2}^2) (2 - exp(-(x_i - x_{i+1})^2 / (0.1 + x_{i+2}^2))), c = 10 / (n + 2).

    Every factor is at least c and 1: 10 (n - 2) / (n + 2) at 0. TOINTGSS.
    """

    def f(x: Tensor) -> Tensor:
        y = x[2:] ** 2
        bell = torch.exp(-((x[:-2] - x[1:-1]) ** 2) / (0.1 + y))
        return ((10 / (n + 2) + y) * (2 - bell)).sum()

    return smooth(
        sized("toint_gss", n), f, full(n, 3), 10 * (n - 2) / (n + 2), full(n, 0), (math.nan,)
    )


def schmvett(n: int = 10) -> Problem:
    """Schmidt and Vetters' function; each of its 3 (n - 2) summands is at least -1. SCHMVETT."""

    def f(x: Tensor) -> Tensor:
        a, b, c = x[:-2], x[1:-1], x[2:]
        sine = torch.sin((math.pi * b + c) / 2)
        return -(1 / (1 + (a - b) ** 2) + sine + torch.exp(-(((a + c) / b - 2) ** 2))).sum()

    minimiser = full(n, math.pi / (math.pi + 1))
    return smooth(sized("schmvett", n), f, full(n, 0.5), -3.0 * (n - 2), minimiser)


def dixon3dq(n: int = 10) -> Problem:
    """(x_1 - 1)^2 + sum (x_i - x_{i+1})^2 + (x_n - 1)^2; x0 = -1. DIXON3DQ."""

    def r(x: Tensor) -> Tensor:
        return torch.cat([x[:1] - 1, x[1:-1] - x[2:], x[-1:] - 1])

    return least_squares(sized("dixon3dq", n), r, full(n, -1), 0.0, full(n, 1))


def sparsine(n: int = 50) -> Problem:
    """sum i (sin x_i + sin x_j + ...)^2 / 2 of six variables each. SPARSINE."""
    i = torch.arange(1, n + 1)
    columns = torch.stack([i - 1, *((k * i - 1) % n for k in (2, 3, 5, 7, 11))])

    def r(x: Tensor) -> Tensor:
        return (indices(x) / 2).sqrt() * torch.sin(x)[columns].sum(0)

    return least_squares(sized("sparsine", n), r, full(n, 0.5), 0.0, full(n, 0))


def curly(n: int = 50, k: int = 10) -> Problem:
    """sum q (q (q^2 - 20) - 0.1) with q_i = x_i + ... + x_{i+k}; -100.3163 n. CURLY10.

    q is any vector, for the map from x is invertible: the minimum is n times that of one summand.
    """

    def f(x: Tensor) -> Tensor:
        total = torch.cat([x.new_zeros(1), torch.cumsum(x, 0)])
        i = torch.arange(n, device=x.device)
        q = total[(i + k + 1).clamp(max=n)] - total[i]
        return (q * (q * (q**2 - 20) - 0.1)).sum()

    return smooth(f"curly(n={n}, k={k})", f, 1e-4 * count(n) / (n + 1), -100.3163 * n)


def genhumps(n: int = 5) -> Problem:
    """sum sin^2(2 x_i) sin^2(2 x_{i+1}) + 0.05 (x_i^2 + x_{i+1}^2), from 506. GENHUMPS."""

    def f(x: Tensor) -> Tensor:
        humps = torch.sin(2 * x) ** 2
        return humps[:-1] @ humps[1:] + 0.05 * (x[:-1] ** 2 + x[1:] ** 2).sum()

    x = full(n, 506.2)
    x[0] = -506
    return smooth(sized("genhumps", n), f, x, 0.0, full(n, 0), (math.nan,))


def problems() -> list[Problem]:
    """All of them, some in two sizes."""
    one = [oscillating_path, generalised_broyden, broyden_7_diagonal, edensch, power, sinquad]
    one += [nondquar, fletchcr, extrosnb, toint_gss, schmvett, dixon3dq, sparsine, curly, genhumps]
    two = [chained_rosenbrock, genrose, chained_wood, chained_powell, arwhead, liarwhd, nondia]
    two += [tridia, quartc, dqdrtic, cosine, bdqrtic, chained_freudenstein_roth]
    sizes = [(cragg_levy, (4, 100)), (engval1, (2, 100))]
    return [
        *(build() for build in [*one, *two]),
        *(build(100) for build in two),
        *(build(n) for build, ns in sizes for n in ns),
    ]
