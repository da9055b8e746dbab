# SPDX-License-Identifier: Apache-2.0
"""The residuals of an equation at points, and their Jacobian row by row."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.pinn.equations import Equation
from benchmarks.pinn.network import Jet, Network, Trace

# Rows of the Jacobian at a time, so that what they need stays in the processor's cache.
_ROWS = 1024


class Condition(NamedTuple):
    """What is to be zero at points, of the jets there and at other points."""

    value: Callable[..., Tensor]
    """Of the jets, and the constants."""
    inputs: list[Tensor]
    """Of the network, one for each jet."""
    constants: list[Tensor]
    """A number for each point."""
    weight: float = 1.0
    """Of its residuals."""


class Collocation:
    """Residuals at points of Sobol's sequence inside, and at equal distances on the edges.

    Each kind of residual is divided by the root of the number of its points.

    Args:
        equation: what is solved.
        network: what is fitted.
        inside: points inside; an eighth of their number lies on each edge.
        dtype: of points and weights.
        part: of the time, from its start, in which the points are.
    """

    def __init__(
        self,
        equation: Equation,
        network: Network,
        inside: int,
        dtype: torch.dtype,
        part: float = 1.0,
    ) -> None:
        self.equation, self.network, self._dtype = equation, network, dtype
        (t0, t1), (x0, x1) = equation.domain
        t1 = t0 + part * (t1 - t0)
        sobol = torch.quasirandom.SobolEngine(2, scramble=True, seed=0)
        low, high = torch.tensor([t0, x0]).double(), torch.tensor([t1, x1]).double()
        points = low + (high - low) * sobol.draw(inside, dtype=torch.float64)
        along = torch.linspace(0, 1, inside // 8, dtype=torch.float64)
        t, x = t0 + (t1 - t0) * along, x0 + (x1 - x0) * along
        first = torch.stack([torch.full_like(x, t0), x], 1)
        last = torch.stack([torch.full_like(x, t1), x], 1)
        left = torch.stack([t, torch.full_like(t, x0)], 1)
        right = torch.stack([t, torch.full_like(t, x1)], 1)
        conditions = [self._inside(points), self._given(first)]
        if not equation.is_periodic:
            conditions += [self._given(left), self._given(right)]
        elif not network.is_periodic:
            conditions.append(Condition(lambda u, v: u.u - v.u, self._inputs(left, right), []))
        if equation.starts_at_rest:
            conditions.append(Condition(lambda u: u.t, self._inputs(first), []))
        if equation.ends:
            conditions.append(self._given(last))
        self._conditions = conditions
        self.size = sum(condition.inputs[0].shape[1] for condition in conditions)

    def weigh(self, weights: list[float]) -> None:
        """Multiply each kind of residual by a number."""
        pairs = zip(self._conditions, weights, strict=True)
        self._conditions = [condition._replace(weight=weight) for condition, weight in pairs]

    def balance(self, theta: Tensor) -> list[float]:
        """Weights for which each kind has a Jacobian of the same norm, that of the last kind.

        Wang, Yu & Perdikaris 2022, doi:10.1016/j.jcp.2021.110768, by the trace of J J'.
        """
        sizes = [condition.inputs[0].shape[1] for condition in self._conditions]
        norms = [float(torch.linalg.matrix_norm(J)) for J in self.jacobian(theta).split(sizes)]
        return [norms[-1] / norm for norm in norms]

    def residuals(self, theta: Tensor) -> Tensor:
        """All of them."""
        return torch.cat([self._residuals(theta, condition) for condition in self._conditions])

    def jacobian(self, theta: Tensor) -> Tensor:
        """A gradient for each point, at the cost of a few passes over all of them.

        A residual depends on its own point alone, so that one backward pass of their sum gives the
        derivatives of each by what every layer computes there, and these those by the weights.
        """
        matrix = theta.new_empty(self.size, len(theta))
        place = 0
        for condition in self._conditions:
            total = condition.inputs[0].shape[1]
            for start in range(0, total, _ROWS):
                rows = self._rows(theta, _part(condition, slice(start, start + _ROWS)))
                torch.mul(
                    rows, condition.weight * total**-0.5, out=matrix[place : place + len(rows)]
                )
                place += len(rows)
        return matrix

    def error(self, theta: Tensor) -> float:
        """|u - exact| / |exact| in L2 on a grid, the network evaluated in its own dtype."""
        inputs, exact = self._grid
        with torch.no_grad():
            u = self.network.values(theta, inputs).double()
        return float((u - exact).norm() / exact.norm())

    @cached_property
    def _grid(self) -> tuple[Tensor, Tensor]:
        """101 times and 513 places, with the exact solution."""
        (t0, t1), (x0, x1) = self.equation.domain
        t = torch.linspace(t0, t1, 101, dtype=torch.float64)
        x = torch.linspace(x0, x1, 513, dtype=torch.float64)
        grid = torch.cartesian_prod(t, x)
        exact = self.equation.exact(grid[:, 0], grid[:, 1])
        return self.network.inputs(grid)[0].to(self._dtype), exact

    def _inputs(self, *points: Tensor) -> list[Tensor]:
        """The inputs at points, computed in float64."""
        return [self.network.inputs(at).to(self._dtype) for at in points]

    def _inside(self, at: Tensor) -> Condition:
        t, x = at.to(self._dtype).unbind(-1)
        return Condition(self.equation.inside, self._inputs(at), [t, x])

    def _given(self, at: Tensor) -> Condition:
        exact = self.equation.exact(at[:, 0], at[:, 1]).to(self._dtype)
        return Condition(lambda u, exact: u.u - exact, self._inputs(at), [exact])

    def _residuals(self, theta: Tensor, condition: Condition) -> Tensor:
        values = condition.value(*self._jets(theta, condition), *condition.constants)
        return values * (condition.weight * len(values) ** -0.5)

    def _jets(
        self, theta: Tensor, condition: Condition, traces: list[list[Trace]] | None = None
    ) -> list[Jet]:
        traces = traces or [[] for _ in condition.inputs]
        pairs = zip(condition.inputs, traces, strict=True)
        return [self.network.jet(theta, inputs, trace) for inputs, trace in pairs]

    def _rows(self, theta: Tensor, condition: Condition) -> Tensor:
        traces: list[list[Trace]] = [[] for _ in condition.inputs]
        with torch.enable_grad():
            jets = self._jets(theta.detach().requires_grad_(), condition, traces)
            total = condition.value(*jets, *condition.constants).sum()
            scaled = [layer.scaled for trace in traces for layer in trace]
            slopes = torch.autograd.grad(total, scaled)
        parts = torch.zeros(())
        with torch.no_grad():
            layers = len(scaled) // len(traces)
            for i, trace in enumerate(traces):
                of_trace = list(slopes[i * layers : (i + 1) * layers])
                parts = parts + self.network.rows(theta, trace, of_trace)
        return parts


def _part(condition: Condition, rows: slice) -> Condition:
    """The same at some of its points."""
    inputs = [entry[:, rows] for entry in condition.inputs]
    return condition._replace(inputs=inputs, constants=[c[rows] for c in condition.constants])
