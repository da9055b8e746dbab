# SPDX-License-Identifier: Apache-2.0
"""Functions of matrices and eigenvalue problems, whose minima linear algebra gives."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hesse.testing.problems import Problem
from hesse.testing.smooth.build import count, full, least_squares, sized, smooth


def _chain(x: Tensor) -> Tensor:
    """The tridiagonal matrix (-1, 2, -1) times x, for each row."""
    zeros = x.new_zeros(*x.shape[:-1], 1)
    return 2 * x - torch.cat([zeros, x[..., :-1]], -1) - torch.cat([x[..., 1:], zeros], -1)


def _symmetric(n: int) -> Tensor:
    """A positive definite matrix of cosines."""
    B = torch.cos(count(n)[:, None] * count(n).sqrt())
    return B @ B.T / n + torch.eye(n, dtype=torch.float64)


def _eigenvalues(n: int) -> Tensor:
    return 2 - 2 * torch.cos(math.pi * count(n) / (n + 1))


def rayleigh_quotient(n: int = 10) -> Problem:
    """x'Ax / x'x, A the chain (-1, 2, -1): its lowest eigenvalue 2 - 2 cos(pi / (n + 1))."""

    def f(x: Tensor) -> Tensor:
        return x @ _chain(x) / (x @ x)

    minimiser = torch.sin(math.pi * count(n) / (n + 1))
    least = float(_eigenvalues(n)[0])
    return smooth(sized("rayleigh_quotient", n), f, count(n) / n, least, minimiser)


def eigenvector_penalty(n: int = 10) -> Problem:
    """x'Ax / 2 + (x'x - 1)^2 / 4, x0 = 1: the lowest eigenvector, 1/4 - (1 - a)^2 / 4 there.

    Auchmuty 1989, doi:10.1137/0726016: x'x = 1 - a with a < 1 the lowest eigenvalue.
    """

    def f(x: Tensor) -> Tensor:
        return x @ _chain(x) / 2 + (x @ x - 1) ** 2 / 4

    a = float(_eigenvalues(n)[0])
    v = torch.sin(math.pi * count(n) / (n + 1))
    minimiser = v / v.norm() * math.sqrt(1 - a)
    return smooth(
        sized("eigenvector_penalty", n), f, full(n, 1), 0.25 - (1 - a) ** 2 / 4, minimiser
    )


def nonlinear_eigenvalue(n: int = 20, strength: float = 1.0) -> Problem:
    """x'Ax / x'x + strength (sum x^4) n / (2 (x'x)^2), the Gross-Pitaevskii energy of a chain."""

    def f(x: Tensor) -> Tensor:
        mass = x @ x
        return x @ _chain(x) / mass + strength * n * (x**4).sum() / (2 * mass**2)

    return smooth(sized("nonlinear_eigenvalue", n), f, full(n, 1))


def lowest_subspace(n: int = 8, k: int = 2) -> Problem:
    """tr(X A X') / 2 + |X X' - I|^2 / 4 for X (k, n): the k lowest eigenvectors."""

    def f(x: Tensor) -> Tensor:
        X = x.view(k, n)
        identity = torch.eye(k, dtype=x.dtype, device=x.device)
        return (X * _chain(X)).sum() / 2 + ((X @ X.T - identity) ** 2).sum() / 4

    a = _eigenvalues(n)[:k]
    least = float((0.25 - (1 - a.clamp(max=1)) ** 2 / 4).sum())
    start = torch.cos(count(n * k)) / 2
    return smooth(f"lowest_subspace(n={n}, k={k})", f, start, least)


def matrix_square_root(n: int = 3) -> Problem:
    """r = X X - B for B = Y Y, Y = sin(i^2) by rows, from 0.8 Y. Liu & Nocedal; CUTEst MSQRTALS."""
    Y = torch.sin(count(n * n) ** 2)
    B = Y.view(n, n) @ Y.view(n, n)

    def r(x: Tensor) -> Tensor:
        X = x.view(n, n)
        return (X @ X - B.to(x)).reshape(-1)

    return least_squares(sized("matrix_square_root", n * n), r, 0.8 * Y, 0.0, Y)


def low_rank_approximation(n: int = 6, k: int = 2) -> Problem:
    """|A - U V'|^2 for U, V (n, k): the sum of the squares of the other singular values.

    Eckart & Young 1936. The minimum is a manifold; other stationary points are saddle points.
    """
    A = _symmetric(n)

    def r(x: Tensor) -> Tensor:
        U, V = x.view(2, n, k)
        return (A.to(x) - U @ V.T).reshape(-1)

    least = float(torch.linalg.svdvals(A)[k:].square().sum())
    name = f"low_rank_approximation(n={n}, k={k})"
    return least_squares(name, r, torch.cos(count(2 * n * k)) / 2, least)


def cholesky_residuals(n: int = 4) -> Problem:
    """r = A - X X' for a full X: 0 on a manifold."""
    A = _symmetric(n)

    def r(x: Tensor) -> Tensor:
        X = x.view(n, n)
        return (A.to(x) - X @ X.T).reshape(-1)

    start = torch.eye(n, dtype=torch.float64).reshape(-1)
    return least_squares(sized("cholesky_residuals", n * n), r, start, 0.0)


def gaussian_covariance(n: int = 4) -> Problem:
    """log det(L L') + tr((L L')^-1 A) for a triangular L: log det A + n at the Cholesky factor."""
    A = _symmetric(n)
    rows, columns = torch.tril_indices(n, n)

    def f(x: Tensor) -> Tensor:
        L = x.new_zeros(n, n).index_put((rows, columns), x)
        half = torch.linalg.solve_triangular(L, torch.linalg.cholesky(A).to(x), upper=False)
        return 2 * L.diagonal().abs().log().sum() + half.square().sum()

    factor = torch.linalg.cholesky(A)[rows, columns]
    start = torch.eye(n, dtype=torch.float64)[rows, columns]
    least = float(torch.logdet(A)) + n
    return smooth(sized("gaussian_covariance", len(rows)), f, start, least, factor)


def log_sum_exp(n: int = 10) -> Problem:
    """log sum exp x - p'x + (sum x)^2 / 2 for probabilities p: the entropy of p at log p - mean."""
    p = count(n) / float(count(n).sum())

    def f(x: Tensor) -> Tensor:
        return torch.logsumexp(x, 0) - p.to(x) @ x + x.sum() ** 2 / 2

    minimiser = p.log() - p.log().mean()
    return smooth(sized("log_sum_exp", n), f, full(n, 1, -1), -float(p @ p.log()), minimiser)


def analytic_centre(n: int = 6) -> Problem:
    """-sum log(1 - x_i^2) - log(n + 1 - |x|^2): finite only inside; from x0 = 0.9 (-1)^i."""

    def f(x: Tensor) -> Tensor:
        return -torch.log(1 - x**2).sum() - torch.log(n + 1 - (x**2).sum())

    return smooth(sized("analytic_centre", n), f, full(n, 0.9, -0.9), -math.log(n + 1), full(n, 0))


def problems() -> list[Problem]:
    """All of them, some in two sizes."""
    return [
        *(rayleigh_quotient(n) for n in (10, 100)),
        *(eigenvector_penalty(n) for n in (10, 100)),
        *(nonlinear_eigenvalue(n) for n in (20, 200)),
        lowest_subspace(),
        *(matrix_square_root(n) for n in (3, 10)),
        low_rank_approximation(),
        *(cholesky_residuals(n) for n in (4, 10)),
        gaussian_covariance(),
        log_sum_exp(),
        analytic_centre(),
    ]
