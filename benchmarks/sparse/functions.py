"""Functions with sparse Hessians: chains, grids, finite elements, an arrow."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Function(NamedTuple):
    """A function of n variables and a point."""

    f: Callable[[Tensor], Tensor]
    x: Tensor


def rosenbrock(n: int) -> Function:
    """The chained Rosenbrock function: a tridiagonal Hessian."""

    def f(x: Tensor) -> Tensor:
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    return Function(f, torch.linspace(-1.0, 1.3, n, dtype=torch.float64))


def bratu(n: int) -> Function:
    """The energy of Bratu's problem on a square grid: five entries in a row."""
    side = round(n**0.5)
    h = 1 / (side + 1)

    def f(u: Tensor) -> Tensor:
        g = F.pad(u.view(side, side), (1, 1, 1, 1))
        down, right = g[1:, 1:-1] - g[:-1, 1:-1], g[1:-1, 1:] - g[1:-1, :-1]
        return 0.5 * (down**2).sum() + 0.5 * (right**2).sum() - h * h * 6.8 * u.exp().sum()

    return Function(f, _random(side**2))


def surface(n: int) -> Function:
    """The area of a surface over a square grid: nine entries in a row."""
    side = round(n**0.5)

    def f(u: Tensor) -> Tensor:
        g = F.pad(u.view(side, side), (1, 1, 1, 1))
        a, b = g[1:, 1:] - g[:-1, :-1], g[1:, :-1] - g[:-1, 1:]
        return torch.sqrt(1 + side**2 * (a * a + b * b) / 2).sum() / side**2

    return Function(f, _random(side**2))


def arrow(n: int) -> Function:
    """A chain of which every link also meets the first variable."""

    def f(x: Tensor) -> Tensor:
        return ((x[1:-1] - x[2:]) ** 4).sum() + (x[0] * x[1:] ** 2).sum()

    return Function(f, torch.linspace(0.1, 1.0, n, dtype=torch.float64))


def elements(n: int) -> Function:
    """n elements of three variables each, drawn at random: no order is a good one."""
    nodes = torch.randint(0, n, (n, 3), generator=torch.Generator().manual_seed(0))

    def f(x: Tensor) -> Tensor:
        a, b, c = x[nodes].unbind(1)
        return (a * torch.sin(b) * c).sum() + (x**4).sum()

    return Function(f, _random(n))


def _random(n: int) -> Tensor:
    return torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


FUNCTIONS: dict[str, tuple[Callable[[int], Function], int]] = {
    "rosenbrock": (rosenbrock, 100_000),
    "bratu": (bratu, 250_000),
    "surface": (surface, 250_000),
    "arrow": (arrow, 100_000),
    "elements": (elements, 100_000),
}
"""name -> the function, and the number of variables it is measured with."""
