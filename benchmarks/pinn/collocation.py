# SPDX-License-Identifier: Apache-2.0
"""The residuals of an equation at points, and their Jacobian row by row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.pinn.equations import Equation
from benchmarks.pinn.network import Network


class Collocation:
    """Residuals at points of Sobol's sequence inside, and at equal distances on the edges.

    Each kind of residual is divided by the root of the number of its points.

    Args:
        equation: what is solved.
        network: what is fitted.
        inside: points inside; an eighth of their number lies on each edge.
        dtype: of points and weights.
    """

    def __init__(
        self, equation: Equation, network: Network, inside: int, dtype: torch.dtype
    ) -> None:
        self.equation, self.network = equation, network
        (t0, t1), (x0, x1) = equation.domain
        sobol = torch.quasirandom.SobolEngine(2, scramble=True, seed=0)
        low, high = torch.tensor([t0, x0]).double(), torch.tensor([t1, x1]).double()
        points = low + (high - low) * sobol.draw(inside, dtype=torch.float64)
        along = torch.linspace(0, 1, inside // 8, dtype=torch.float64)
        t, x = t0 + (t1 - t0) * along, x0 + (x1 - x0) * along
        first = torch.stack([torch.full_like(x, t0), x], 1)
        last = torch.stack([torch.full_like(x, t1), x], 1)
        left = torch.stack([t, torch.full_like(t, x0)], 1)
        right = torch.stack([t, torch.full_like(t, x1)], 1)
        kinds: list[tuple[Callable, Tensor]] = [(self._inside, points), (self._on_edge, first)]
        if equation.is_periodic:
            kinds += [(self._difference, left), (self._slopes_differ, left)]
        else:
            kinds += [(self._on_edge, left), (self._on_edge, right)]
        if equation.starts_at_rest:
            kinds.append((self._moving, first))
        if equation.ends:
            kinds.append((self._on_edge, last))
        self._kinds = [(kind, at.to(dtype), len(at) ** -0.5) for kind, at in kinds]
        self.size = sum(len(at) for _, at, _ in self._kinds)

    def residuals(self, theta: Tensor) -> Tensor:
        """All of them."""
        return torch.cat([scale * kind(theta, at) for kind, at, scale in self._kinds])

    def jacobian(self, theta: Tensor) -> Tensor:
        """A gradient for each point, at the cost of a few passes over all of them."""
        rows = []
        for kind, at, scale in self._kinds:
            gradient = torch.func.grad(lambda theta, point, kind=kind: kind(theta, point))
            rows.append(scale * torch.func.vmap(gradient, (None, 0), chunk_size=1024)(theta, at))
        return torch.cat(rows)

    def error(self, theta: Tensor, points: int = 201) -> float:
        """|u - exact| / |exact| in L2, on a grid."""
        (t0, t1), (x0, x1) = self.equation.domain
        t = torch.linspace(t0, t1, points, dtype=torch.float64)
        x = torch.linspace(x0, x1, points, dtype=torch.float64)
        grid = torch.cartesian_prod(t, x)
        with torch.no_grad():
            u = self.network.jet(theta, grid.to(theta.dtype)).u.double()
        exact = self.equation.exact(grid[:, 0], grid[:, 1])
        return float((u - exact).norm() / exact.norm())

    def _inside(self, theta: Tensor, at: Tensor) -> Tensor:
        return self.equation.inside(self.network.jet(theta, at), at[..., 0], at[..., 1])

    def _on_edge(self, theta: Tensor, at: Tensor) -> Tensor:
        exact = self.equation.exact(at[..., 0], at[..., 1]).to(at.dtype)
        return self.network.jet(theta, at).u - exact

    def _moving(self, theta: Tensor, at: Tensor) -> Tensor:
        return self.network.jet(theta, at).t

    def _difference(self, theta: Tensor, at: Tensor) -> Tensor:
        return self.network.jet(theta, at).u - self.network.jet(theta, self._opposite(at)).u

    def _slopes_differ(self, theta: Tensor, at: Tensor) -> Tensor:
        return self.network.jet(theta, at).x - self.network.jet(theta, self._opposite(at)).x

    def _opposite(self, at: Tensor) -> Tensor:
        x0, x1 = self.equation.domain[1]
        return at + at.new_tensor([0.0, x1 - x0])
