# SPDX-License-Identifier: Apache-2.0
"""The problems of More, Garbow & Hillstrom with any number of variables.

Source of all: More, Garbow & Hillstrom 1981, doi:10.1145/355934.355936; the docstrings begin with
their numbers. f is the sum of squares of the residuals.
"""

from __future__ import annotations

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
    vector,
)


def extended_rosenbrock(n: int = 10) -> Problem:
    """21. n / 2 separate Rosenbrock functions."""

    def r(x: Tensor) -> Tensor:
        odd, even = x[::2], x[1::2]
        return torch.cat([10 * (even - odd**2), 1 - odd])

    return least_squares(sized("extended_rosenbrock", n), r, full(n, -1.2, 1), 0.0, full(n, 1))


def extended_powell(n: int = 12) -> Problem:
    """22. n / 4 separate Powell singular functions."""

    def r(x: Tensor) -> Tensor:
        a, b, c, d = x.view(-1, 4).T
        return torch.cat([a + 10 * b, 5**0.5 * (c - d), (b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2])

    return least_squares(sized("extended_powell", n), r, full(n, 3, -1, 0, 1), 0.0, full(n, 0))


def penalty_1(n: int = 10) -> Problem:
    """23. r = (sqrt(1e-5) (x - 1), |x|^2 - 1/4); x0 = (1, ..., n)."""

    def r(x: Tensor) -> Tensor:
        return torch.cat([1e-5**0.5 * (x - 1), (x @ x - 0.25)[None]])

    known = {4: 2.24997e-5, 10: 7.08765e-5}
    return least_squares(sized("penalty_1", n), r, count(n), known.get(n))


def penalty_2(n: int = 10) -> Problem:
    """24. Exponentials of neighbours, and sum (n - j + 1) x_j^2 - 1; x0 = 1/2."""

    def r(x: Tensor) -> Tensor:
        i, a, e = indices(x), 1e-5**0.5, torch.exp(x / 10)
        y = torch.exp(i[1:] / 10) + torch.exp(i[:-1] / 10)
        smooth = [a * (e[1:] + e[:-1] - y), a * (e[1:] - torch.exp(-x.new_ones(()) / 10))]
        return torch.cat([x[:1] - 0.2, *smooth, (i.flip(0) @ x**2 - 1)[None]])

    known = {4: 9.37629e-6, 10: 2.93660e-4}
    return least_squares(sized("penalty_2", n), r, full(n, 0.5), known.get(n))


def variably_dimensioned(n: int = 10) -> Problem:
    """25. r = (x - 1, s, s^2), s = sum j (x_j - 1); x0_j = 1 - j / n."""

    def r(x: Tensor) -> Tensor:
        s = indices(x) @ (x - 1)
        return torch.cat([x - 1, torch.stack([s, s**2])])

    return least_squares(sized("variably_dimensioned", n), r, 1 - count(n) / n, 0.0, full(n, 1))


def trigonometric(n: int = 10) -> Problem:
    """26. r_i = n - sum cos x_j + i (1 - cos x_i) - sin x_i; x0 = 1 / n."""

    def r(x: Tensor) -> Tensor:
        cos = torch.cos(x)
        return n - cos.sum() + indices(x) * (1 - cos) - torch.sin(x)

    local = (2.79506e-5,) if n == 10 else ()
    return least_squares(
        sized("trigonometric", n), r, full(n, 1 / n), 0.0, full(n, 0), local_minima=local
    )


def brown_almost_linear(n: int = 10) -> Problem:
    """27. r_i = x_i + sum x - (n + 1), r_n = prod x - 1; 1 is a minimum at (0, ..., 0, n + 1)."""

    def r(x: Tensor) -> Tensor:
        return torch.cat([x[:-1] + x.sum() - (n + 1), (x.prod() - 1)[None]])

    name = sized("brown_almost_linear", n)
    return least_squares(name, r, full(n, 0.5), 0.0, full(n, 1), local_minima=(1.0,))


def discrete_boundary(n: int = 10) -> Problem:
    """28. u'' = (u + t + 1)^3 / 2 with u(0) = u(1) = 0, by differences."""
    h = 1 / (n + 1)

    def r(x: Tensor) -> Tensor:
        t = h * indices(x)
        return 2 * x - shifted(x, 1) - shifted(x, -1) + h**2 * (x + t + 1) ** 3 / 2

    t = h * count(n)
    return least_squares(sized("discrete_boundary", n), r, t * (t - 1), 0.0)


def discrete_integral(n: int = 10) -> Problem:
    """29. The same as an integral equation."""
    h = 1 / (n + 1)

    def r(x: Tensor) -> Tensor:
        t = h * indices(x)
        cubes = (x + t + 1) ** 3
        below = torch.cumsum(t * cubes, 0)
        above = ((1 - t) * cubes).sum() - torch.cumsum((1 - t) * cubes, 0)
        return x + h * ((1 - t) * below + t * above) / 2

    t = h * count(n)
    return least_squares(sized("discrete_integral", n), r, t * (t - 1), 0.0)


def broyden_tridiagonal(n: int = 10) -> Problem:
    """30. r_i = (3 - 2 x_i) x_i - x_{i-1} - 2 x_{i+1} + 1; x0 = -1."""

    def r(x: Tensor) -> Tensor:
        return (3 - 2 * x) * x - shifted(x, 1) - 2 * shifted(x, -1) + 1

    return least_squares(sized("broyden_tridiagonal", n), r, full(n, -1), 0.0)


def broyden_banded(n: int = 10) -> Problem:
    """31. r_i = x_i (2 + 5 x_i^2) + 1 - sum of x_j (1 + x_j), i - 5 <= j <= i + 1, j != i."""

    def r(x: Tensor) -> Tensor:
        w = x * (1 + x)
        neighbours = sum((shifted(w, k) for k in (1, 2, 3, 4, 5)), shifted(w, -1))
        return x * (2 + 5 * x**2) + 1 - neighbours

    return least_squares(sized("broyden_banded", n), r, full(n, -1), 0.0)


def linear_full_rank(n: int = 10, m: int = 20) -> Problem:
    """32. r = x - 2 s - 1, then -2 s - 1, s = sum x / m; m - n at -1."""

    def r(x: Tensor) -> Tensor:
        rest = -2 * x.sum() / m - 1
        return torch.cat([x + rest, rest.expand(m - n)])

    return least_squares(
        f"linear_full_rank(n={n}, m={m})", r, full(n, 1), float(m - n), full(n, -1)
    )


def linear_rank_1(n: int = 10, m: int = 20) -> Problem:
    """33. r_i = i sum j x_j - 1; m (m - 1) / (2 (2 m + 1))."""

    def r(x: Tensor) -> Tensor:
        return count(m, x) * (indices(x) @ x) - 1

    minimiser = full(n, 0)
    minimiser[0] = 3 / (2 * m + 1)
    least = m * (m - 1) / (2 * (2 * m + 1))
    return least_squares(f"linear_rank_1(n={n}, m={m})", r, full(n, 1), least, minimiser)


def linear_rank_1_zeros(n: int = 10, m: int = 20) -> Problem:
    """34. The same with zero rows and columns; (m^2 + 3 m - 6) / (2 (2 m - 3))."""

    def r(x: Tensor) -> Tensor:
        inner = (count(m, x)[1:-1] - 1) * (indices(x)[1:-1] @ x[1:-1]) - 1
        return torch.cat([-x.new_ones(1), inner, -x.new_ones(1)])

    minimiser = full(n, 0)
    minimiser[1] = 3 / (2 * (2 * m - 3))
    least = (m**2 + 3 * m - 6) / (2 * (2 * m - 3))
    return least_squares(f"linear_rank_1_zeros(n={n}, m={m})", r, full(n, 1), least, minimiser)


def chebyquad(n: int = 8) -> Problem:
    """35. r_i = the mean of T_i(x_j) over j less its integral, on [0, 1]; x0_j = j / (n + 1)."""

    def r(x: Tensor) -> Tensor:
        z = 2 * x - 1
        last, now, means = torch.ones_like(z), z, []
        for i in range(1, n + 1):
            means.append(now.mean() + (0 if i % 2 else 1 / (i**2 - 1)))
            last, now = now, 2 * z * now - last
        return torch.stack(means)

    known = dict.fromkeys((2, 3, 4, 5, 6, 7, 9), 0.0) | {8: 3.51687e-3, 10: 4.77271e-3}
    local = (6.50395e-3,) if n == 10 else ()
    nodes = vector(0.5 - 0.5 / 3**0.5, 0.5 + 0.5 / 3**0.5) if n == 2 else None  # of Gauss
    start = count(n) / (n + 1)
    return least_squares(sized("chebyquad", n), r, start, known.get(n), nodes, local)


def problems() -> list[Problem]:
    """All of them, in one to three sizes."""
    return [
        *(extended_rosenbrock(n) for n in (10, 1000)),
        *(extended_powell(n) for n in (12, 1000)),
        *(penalty_1(n) for n in (4, 10)),
        *(penalty_2(n) for n in (4, 10)),
        *(variably_dimensioned(n) for n in (10, 50)),
        *(trigonometric(n) for n in (10, 50)),
        *(brown_almost_linear(n) for n in (10, 30)),
        *(discrete_boundary(n) for n in (10, 100)),
        *(discrete_integral(n) for n in (10, 100)),
        *(broyden_tridiagonal(n) for n in (10, 1000)),
        *(broyden_banded(n) for n in (10, 1000)),
        linear_full_rank(),
        linear_rank_1(),
        linear_rank_1_zeros(),
        *(chebyquad(n) for n in (2, 8, 9, 10)),
    ]
