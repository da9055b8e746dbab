"""A physics-informed network: f itself differentiates the network in its inputs.

Poisson's equation -Δu = 2 pi^2 sin(pi x) sin(pi y) on the unit square, u = 0 on its boundary; the
loss is the mean square of the residuals inside and of the values on the boundary. The residuals
are the outputs of a module, so that the loss has a Gauss-Newton matrix.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from benchmarks.models.seeded import seeded
from benchmarks.problem import ModelAndLoss, Problem

INSIDE, BOUNDARY = 512, 128


def poisson() -> Problem:
    """2-64-64-64-1 with tanh units at 640 points; u is differentiated as in most codes."""
    points = _points()
    targets = torch.zeros(len(points))
    parts = ModelAndLoss(seeded(ResidualsByAutograd), nn.MSELoss(), points, targets)
    functional = ModelAndLoss(seeded(ResidualsByTransforms), nn.MSELoss(), points, targets)
    return Problem.of("pinn", parts, functional=functional, jax="pinn")


class Residuals(nn.Module):
    """-Δu - source at the points inside, then u on the boundary."""

    def __init__(self) -> None:
        super().__init__()
        widths = [2, 64, 64, 64]
        hidden = [(nn.Linear(a, b), nn.Tanh()) for a, b in pairwise(widths)]
        self.u = nn.Sequential(*(layer for pair in hidden for layer in pair), nn.Linear(64, 1))

    def laplacian(self, points: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, points: Tensor) -> Tensor:
        inside, boundary = points[:INSIDE], points[INSIDE:]
        source = 2 * math.pi**2 * torch.sin(math.pi * inside).prod(dim=1)
        residual = -self.laplacian(inside) - source
        return torch.cat([residual, self.u(boundary)[:, 0]])


class ResidualsByAutograd(Residuals):
    """With `torch.autograd.grad`, as most codes do."""

    def laplacian(self, points: Tensor) -> Tensor:
        points = points.clone().requires_grad_()
        slope = torch.autograd.grad(self.u(points).sum(), points, create_graph=True)[0]
        second = [
            torch.autograd.grad(slope[:, axis].sum(), points, create_graph=True)[0][:, axis]
            for axis in range(2)
        ]
        return second[0] + second[1]


class ResidualsByTransforms(Residuals):
    """With `torch.func`, whose transforms `torch.autograd.grad` does not see."""

    def laplacian(self, points: Tensor) -> Tensor:
        def at(point: Tensor) -> Tensor:
            return jacrev(jacrev(lambda point: self.u(point)[0]))(point).trace()

        return vmap(at)(points)


def _points() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    inside = torch.rand(INSIDE, 2, generator=generator)
    side = torch.rand(BOUNDARY, 2, generator=generator)
    edge = torch.arange(BOUNDARY) % 4
    side[torch.arange(BOUNDARY), edge // 2] = (edge % 2).float()
    return torch.cat([inside, side])
