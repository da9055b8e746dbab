# SPDX-License-Identifier: Apache-2.0
"""Functions whose Hessians are sparse."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F

from hesse.curvature import sparse_hessian_operator
from tests.smooth_functions import rosenbrock

DOUBLE = torch.float64
LAPLACE = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=DOUBLE)[None, None]


def point(n, seed=0):
    return torch.rand(n, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)) + 0.2


@cache  # f must not draw random numbers
def integers(high, *shape):
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(1))


def bratu(u):
    side = round(len(u) ** 0.5)
    g = F.pad(u.view(side, side), (1, 1, 1, 1))
    squares = (g[1:, 1:-1] - g[:-1, 1:-1]).square().sum() + (
        g[1:-1, 1:] - g[1:-1, :-1]
    ).square().sum()
    return squares / 2 - 6.8 / (side + 1) ** 2 * u.exp().sum()


def surface(u):
    side = round(len(u) ** 0.5)
    g = F.pad(u.view(side, side), (1, 1, 1, 1))
    a, b = g[1:, 1:] - g[:-1, :-1], g[1:, :-1] - g[:-1, 1:]
    return torch.sqrt(1 + side**2 * (a * a + b * b) / 2).sum() / side**2


def arrow(x):
    return ((x[1:-1] - x[2:]) ** 4).sum() + (x[0] * x[1:] ** 2).sum()


def elements(x, m=12):
    i = integers(len(x), m, 3)
    return (x[i[:, 0]] * torch.sin(x[i[:, 1]]) * x[i[:, 2]]).sum() + (x**4).sum()


def by_scatter(x):
    """Node forces by index_add and scatter_add."""
    i, j = integers(len(x), 2, 10)
    forces = torch.zeros_like(x).index_add(0, i, x[j] ** 2)
    return (forces**2).sum() + (torch.zeros_like(x).scatter_add(0, j, x[i].sin()) ** 3).sum()


def triangles(x):
    """Linear finite elements: matrices of elements times their values."""
    stiffness = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 2.0, -1.0], [0.0, -1.0, 1.0]], dtype=DOUBLE)
    values = x[integers(len(x), 8, 3)]
    return (values * (values @ stiffness)).sum() + (values.prod(1) ** 2).sum()


def small_matrices(x):
    """A batch of 2 x 2 matrices that depend on x, times vectors that do."""
    blocks = x[:16].view(4, 2, 2)
    return (blocks @ x[4:12].view(4, 2, 1)).square().sum()


def sparse_matrix(x):
    """|D x|^4 with a constant matrix D that is mostly zero."""
    n = len(x)
    D = torch.eye(n, dtype=DOUBLE) - torch.diag(torch.ones(n - 2, dtype=DOUBLE), 2)
    return ((D @ x) ** 4).sum()


def constant(values):
    return torch.tensor(values, dtype=DOUBLE)


def convolved(x):
    kernel = constant([[[1.0, -2.0, 1.0], [0.0, 0.5, 0.0]], [[0.0, 0.0, 3.0], [1.0, 0.0, 0.0]]])
    y = F.conv1d(x[:16].view(1, 2, 8), kernel, padding=1)
    z = F.conv1d(x[:16].view(1, 4, 4), constant([[[1.0, 2.0]]] * 4), groups=4, stride=2)
    up = F.conv_transpose1d(x[:8].view(1, 2, 4), kernel, stride=2)
    return (y**3).sum() + (z**3).sum() + (up**3).sum()


def softened(x):
    return (x[:12].view(3, 4).softmax(1) * x[4:16].view(3, 4)).sum() + x[:6].logsumexp(0)


def cumulative(x):
    return (x.view(-1, 4).cumsum(1) ** 3).sum()


def with_a_boundary(x):
    """The nodes of a grid inside of a boundary, written into it."""
    u = torch.zeros(6, 6, dtype=x.dtype)
    u[1:-1, 1:-1] = x.view(4, 4)
    u[0] = 1
    return ((u[1:] - u[:-1]) ** 4).sum() + ((u[:, 1:] - u[:, :-1]) ** 4).sum()


def with_fixed_ends(x):
    u = x**2
    u[0], u[-1] = 0, x[1]
    u[2:5] *= x[3]
    return (u.diff() ** 3).sum()


def gradients_of_cells(x, rows):
    """Square matrices, each from neighbours on a chain of points."""
    p = x.view(-1, rows)
    columns = [p[i : len(p) - rows + i] - p[: len(p) - rows] ** 2 for i in range(1, rows + 1)]
    return torch.stack(columns, -1) + 2 * torch.eye(rows, dtype=x.dtype)


def crossed(x):
    edges = x.view(-1, 3).diff(dim=0)
    return (torch.linalg.cross(edges[1:], edges[:-1]) ** 2).sum() + (
        torch.cross(edges, x.view(-1, 3)[1:], dim=1) ** 3
    ).sum()


def solved(x):
    A = gradients_of_cells(x, 2)
    b = x.view(-1, 2)[1:-1, :, None]
    return torch.linalg.solve(A, b).sum() + torch.linalg.cholesky(A @ A.mT).square().sum()


FUNCTIONS = {
    "cross products": (crossed, 12),
    "determinants, 2": (lambda x: torch.linalg.det(gradients_of_cells(x, 2)).square().sum(), 10),
    "determinants, 3": (lambda x: torch.det(gradients_of_cells(x, 3)).square().sum(), 15),
    "logdet": (lambda x: gradients_of_cells(x, 2).logdet().sum(), 8),
    "slogdet": (lambda x: torch.linalg.slogdet(gradients_of_cells(x, 3))[1].square().sum(), 12),
    "solved": (solved, 8),
    "a boundary written to": (with_a_boundary, 16),
    "ends written to": (with_fixed_ends, 9),
    "wound": (
        lambda x: (F.pad(x.view(1, 1, -1), (2, 1), mode="circular").diff() ** 4).sum(),
        7,
    ),
    "rosenbrock": (rosenbrock, 9),
    "bratu": (bratu, 16),
    "minimal surface": (surface, 16),
    "arrow": (arrow, 9),
    "elements": (elements, 10),
    "scatter": (by_scatter, 9),
    "triangles": (triangles, 11),
    "small matrices": (small_matrices, 17),
    "sparse matrix": (sparse_matrix, 8),
    "convolutions": (convolved, 17),
    "softmax": (softened, 17),
    "cumsum": (cumulative, 12),
    "biharmonic": (
        lambda u: (F.conv2d(u.view(1, 1, 5, 5), LAPLACE, padding=1) ** 2).sum() + (u**4).sum(),
        25,
    ),
    "periodic": (lambda x: ((x - x.roll(1)) ** 4).sum() + (x * x.flip(0)).sum(), 7),
    "branches": (lambda x: torch.where(x > 0.6, x**3, x[0] * x**2).sum(), 6),
    "masked": (lambda x: (x * constant([1.0, 0.0] * 4) * x.roll(1)).square().sum(), 8),
    "replaced": (lambda x: (x.clone().index_put((torch.tensor([1]),), x[3:4] ** 2) ** 3).sum(), 5),
    "reflected": (
        lambda x: (F.pad(x.view(1, 1, -1), (2, 2), mode="reflect").diff() ** 4).sum(),
        7,
    ),
    "replicated": (
        lambda x: (F.pad(x.view(1, 3, 3), (1, 1, 1, 1), mode="replicate").diff() ** 3).sum(),
        9,
    ),
    "unfolded": (lambda x: (x.unfold(0, 3, 2).prod(1) ** 2).sum(), 9),
    "patches": (lambda x: F.unfold(x.view(1, 1, 4, 4), 2, stride=2).prod(1).exp().sum(), 16),
    "interpolated": (
        lambda x: (F.interpolate(x.view(1, 1, -1), scale_factor=2).diff() ** 4).sum(),
        6,
    ),
    "gathered": (lambda x: (x.view(3, 4).gather(1, integers(4, 3, 2)).prod(1) ** 2).sum(), 12),
    "means": (lambda x: (x.view(4, 3).mean(1) ** 3).sum() + (x.view(4, 3).sum(0) ** 3).sum(), 12),
    "triangle": (lambda x: (x.view(3, 3).tril() ** 3).sum(), 9),
    "a diagonal": (lambda x: (x.view(3, 3) ** 3).diagonal().sum(), 9),
    "every other link": (lambda x: (x[1:] * x[:-1] ** 2)[::2].sum(), 9),
    "a trace": (lambda x: (x.view(3, 3) ** 2).trace() * x[0], 9),
    "linear": (lambda x: (3 * x).sum() + x[0] ** 2, 5),
    "dense": (lambda x: x.norm() ** 4, 6),
}


# Both branches belong to the pattern, a difference of equal entries does, and where `trace` has its
# zeros is an index that is computed.
LARGER = {"branches", "interpolated", "a trace"}


def dense_of(f, x):
    return torch.autograd.functional.hessian(f, x)


def at_the_fifth_point(f, n=8, **options):
    """The Hessian of f after four points; no product is compared at the 6th and 7th."""
    S = sparse_hessian_operator(f, point(n), **options)
    for seed in range(1, 5):
        S = S.at(point(n, seed))
    assert S.structure.programs is not None
    return S


# An operation of theirs has no rule for entries: they are found from products.
WITHOUT_PROGRAM = {
    *("cross products", "determinants, 2", "determinants, 3", "logdet", "slogdet", "solved"),
    "small matrices",
    "sparse matrix",
    "triangles",
    "convolutions",
    "biharmonic",
}
