# SPDX-License-Identifier: Apache-2.0
r"""Products with the generalised Gauss-Newton matrix J' H_L J of a loss L(z(x)).

With outputs z = z(x), Jacobian J = dz/dx and the Hessian H_L of the loss in the outputs,

$$ \nabla^2 (L \circ z) = J^T H_L J + \sum_k \frac{\partial L}{\partial z_k} \nabla^2 z_k . $$

The first term is positive semi-definite for a convex loss; where the outputs are linear in x or the
loss is at its minimum it is the Hessian.

A prepared product costs 4 forward passes' worth of matrix products, 1.33 gradients: J'u is a
backward pass through the graph of z, and J v is the derivative of J'u, linear in u, with respect to
u: a backward pass through the graph of that backward pass. Forward mode, which would compute z anew
for every v, is not needed.

Source: Schraudolph 2002, doi:10.1162/08997660260028683.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hesse.ad.evaluate import (
    UndifferentiableError,
    custom_function,
    derivative,
    gradient_of,
    graph_nodes,
    twice_differentiable,
)
from hesse.ad.loss import LossHessian, explained, random_like, undifferentiable
from hesse.ad.variables import Leaves, check_scalar, number, tracked
from hesse.vectors.inner_products import dot, norm
from hesse.vectors.rows import joined

Model = tuple[Callable[[Leaves], Any], Callable[[Any], Tensor]]
"""(leaves of x -> z, z -> loss)."""


class RetainedGaussNewton:
    """J' H_L J at x, with the value and the gradient; keeps the graphs of z and of J'u.

    Args:
        outputs: the leaves of x -> z.
        loss: z -> a scalar.
        x: the leaves.
        call: how to name the caller in an error.
    """

    def __init__(
        self, outputs: Callable[[Leaves], Any], loss: Callable[[Any], Tensor], x: Leaves, call: str
    ) -> None:
        self._call = call
        with twice_differentiable():
            self._x = tracked(x)
            self._loss = LossHessian(outputs(self._x), loss, call)
        self._z, self.value = self._loss.tensors, self._loss.value

    @property
    def gradient(self) -> list[Tensor]:
        """J' dL/dz."""
        return self.pull_back(self._loss.slope)

    def push_forward(self, v: Leaves) -> list[Tensor]:
        """J v, shaped like the outputs."""
        with twice_differentiable(), explained(self._call, "outputs"):
            return _derivative_in_weights(*self._transposed, v)

    def pull_back(self, u: Leaves) -> list[Tensor]:
        """J' u, one tensor a leaf of x."""
        with twice_differentiable():
            return derivative(self._z, self._x, list(u), retain_graph=True)

    @property
    def recomputes(self) -> bool:
        """Whether there is something to check; a `Risk` puts its parameters in for good."""
        return self._loss.may_be_flat

    def check(self) -> None:
        """Warn if the loss has no curvature."""
        if self._loss.may_be_flat:
            self._loss.check_flat()

    def product(self, v: Leaves) -> list[Tensor]:
        """J' H_L J v."""
        return self.pull_back(self._loss.product(self.push_forward(v)))

    def curvature(self, v: Leaves) -> Tensor:
        """v' J' H_L J v, without the backward pass: half the cost of a product."""
        u = self.push_forward(v)
        parts = zip(u, self._loss.product(u), strict=True)
        return torch.stack([(a * b).sum(dtype=torch.float64) for a, b in parts]).sum()

    @property
    def nodes(self) -> list[str]:
        """The names of the nodes of the graph of z."""
        return [node.name() for z in self._z for node in graph_nodes(z)]

    @property
    def custom(self) -> str | None:
        """A user's `autograd.Function` on the way to z or the loss; it has been checked."""
        return self._custom or self._loss.custom

    @property
    def _custom(self) -> str | None:
        return next(filter(None, map(custom_function, self._z)), None)

    @cached_property
    def _transposed(self) -> tuple[list[Tensor], list[Tensor]]:
        """u, and J'u as a graph in u. Any u serves, since J'u is linear in it."""
        u = [torch.ones_like(z).requires_grad_() for z in self._z]
        back = gradient_of(self._z, self._x, self._call, u, create_graph=True)
        self._loss.check_custom_function()
        self._check_custom_functions(u, back)
        return u, back

    def _check_custom_functions(self, u: list[Tensor], back: list[Tensor]) -> None:
        """Raise unless <J v, w> = <v, J'w>, where a backward pass may be no program of torch's."""
        try:
            name = self._custom
        except UndifferentiableError as error:
            raise undifferentiable(self._call, "outputs", str(error)) from error
        if name is None:
            return
        v, w = random_like(self._x), random_like(self._z)
        pushed, pulled = joined(_derivative_in_weights(u, back, v)), joined(self.pull_back(w))
        defect = abs(dot(pushed, joined(w)) - dot(joined(v), pulled))
        # Entries of v and w have variance one: rounding is some eps of these norms.
        if defect > torch.finfo(pushed.dtype).eps ** 0.5 * (norm(pushed) + norm(pulled)):
            reason = f"the backward pass of {name} cannot be differentiated"
            raise undifferentiable(self._call, "outputs", reason)


class GaussNewtonKind:
    """Prepare J' H_L J v; a function is here a pair (outputs, loss)."""

    quantities = ("product", "curvature")

    def __init__(self, call: str) -> None:
        self.call = call

    def value(self, function: Model, x: Leaves) -> Tensor:
        """L(z(x))."""
        outputs, loss = function
        with twice_differentiable():
            return number(check_scalar(loss(outputs(x)), self.call))

    def retain(self, function: Model, x: Leaves) -> RetainedGaussNewton:
        """The kept graphs at x."""
        outputs, loss = function
        return RetainedGaussNewton(outputs, loss, x, self.call)


def _derivative_in_weights(u: Leaves, back: Leaves, v: Leaves) -> list[Tensor]:
    """J v, as the derivative of the graph of J'u with respect to u."""
    pairs = [(b, w) for b, w in zip(back, v, strict=True) if b.requires_grad]
    if not pairs:
        return [torch.zeros_like(part) for part in u]
    graph, directions = zip(*pairs, strict=True)
    return derivative(graph, u, directions, retain_graph=True)
