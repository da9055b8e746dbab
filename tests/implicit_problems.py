# SPDX-License-Identifier: Apache-2.0
"""Equations whose solutions, and their derivatives, are known."""

import math

import torch
from torch.func import grad

from hesse.apps import argmin, fixed_point, root

DOUBLE = torch.float64
N = 6


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=seeded(seed))


def definite(seed=0):
    M = random(N, N, seed=seed)
    return M @ M.T + torch.eye(N, dtype=DOUBLE)


A, B = definite(), random(N, N, seed=1)


def quadratic(x, l):
    """Its minimiser is (A + diag(e^l))^-1 B l."""
    return x @ A @ x / 2 + (l.exp() * x * x).sum() / 2 - x @ (B @ l)


def quadratic_minimiser(l):
    return torch.linalg.solve(A + torch.diag(l.exp()), B @ l)


W = 0.9 * random(N, N, seed=2) / math.sqrt(N)


def layer(x, l):
    """A deep equilibrium layer, whose Jacobian is not symmetric."""
    return torch.tanh(l["W"] @ x + l["b"])


def layer_by_iteration(l):
    x = torch.zeros(N, dtype=DOUBLE)
    for _ in range(400):
        x = layer(x, l)
    return x


LAYER = {"W": W, "b": random(N, seed=3)}
FUNCTIONS = {
    "minimum": (
        lambda **options: argmin(quadratic, torch.zeros(N, dtype=DOUBLE), **options),
        quadratic_minimiser,
    ),
    "root": (
        lambda **options: root(grad(quadratic), torch.zeros(N, dtype=DOUBLE), **options),
        quadratic_minimiser,
    ),
    "fixed point": (
        lambda **options: fixed_point(
            lambda x, l: layer(x, {"W": W, "b": l}), torch.zeros(N, dtype=DOUBLE), **options
        ),
        lambda l: layer_by_iteration({"W": W, "b": l}),
    ),
}
L0 = random(N, seed=4) / 2
OPTIONS = {"rtol": 1e-12, "warm_start": False}


def close(a, b, tolerance=1e-8):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def weigh(x):
    return (x**3).sum() + x[0] * x[1]
