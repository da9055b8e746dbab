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

import copy
from collections.abc import Callable, MutableMapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hesse.ad.evaluate import (
    Leaves,
    UndifferentiableError,
    check_depends,
    check_scalar,
    custom_function,
    derivative,
    gradient_of,
    graph_nodes,
    tracked,
    twice_differentiable,
)
from hesse.errors import DerivativeError, FunctionError
from hesse.vectors import dot, norm

Model = tuple[Callable[[Leaves], Any], Callable[[Any], Tensor]]
"""(leaves of x -> z, z -> loss)."""


class LossHessian:
    """The loss as a function of the outputs: its value, its slope, and products with H_L.

    Args:
        outputs: z, a tensor or a tree that the loss understands; `tensors` are those that depend on
            the parameters.
        loss: z -> a scalar.
    """

    def __init__(self, outputs: Any, loss: Callable[[Any], Tensor], call: str) -> None:
        self.tensors, rebuild = _output_tensors(outputs, call)
        self._free = tracked(self.tensors)
        value = check_scalar(loss(rebuild(self._free)), call)
        check_depends(value, call)
        self._slope = derivative(value, self._free, create_graph=True)
        _check_curved(self._slope, call)
        self.value = value.detach()

    @property
    def slope(self) -> list[Tensor]:
        """dL/dz."""
        return [part.detach() for part in self._slope]

    def product(self, u: Leaves) -> list[Tensor]:
        """H_L u, shaped like the outputs."""
        pairs = [(s, w) for s, w in zip(self._slope, u, strict=True) if s.requires_grad]
        graph, directions = zip(*pairs, strict=True)
        with twice_differentiable():
            return derivative(graph, self._free, directions, retain_graph=True)


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
        with twice_differentiable():
            return _derivative_in_weights(*self._transposed, v)

    def pull_back(self, u: Leaves) -> list[Tensor]:
        """J' u, one tensor a leaf of x."""
        with twice_differentiable():
            return derivative(self._z, self._x, list(u), retain_graph=True)

    recomputes = False
    """Of a `Risk`, which puts its parameters in for good."""

    def check(self) -> None:
        """There is nothing to check."""

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
        """A user's `autograd.Function` on the way to z; it has been checked."""
        return next(filter(None, map(custom_function, self._z)), None)

    @cached_property
    def _transposed(self) -> tuple[list[Tensor], list[Tensor]]:
        """u, and J'u as a graph in u. Any u serves, since J'u is linear in it."""
        u = [torch.ones_like(z).requires_grad_() for z in self._z]
        back = gradient_of(self._z, self._x, self._call, u, create_graph=True)
        self._check_custom_functions(u, back)
        return u, back

    def _check_custom_functions(self, u: list[Tensor], back: list[Tensor]) -> None:
        """Raise unless <J v, w> = <v, J'w>, where a backward pass may be no program of torch's."""
        try:
            name = self.custom
        except UndifferentiableError as error:
            raise self._undifferentiable(str(error)) from error
        if name is None:
            return
        generator = torch.Generator().manual_seed(0)
        v = [torch.randn(part.shape, generator=generator).to(part) for part in self._x]
        w = [torch.randn(part.shape, generator=generator).to(part) for part in self._z]
        pushed, pulled = _flat(_derivative_in_weights(u, back, v)), _flat(self.pull_back(w))
        defect = abs(dot(pushed, _flat(w)) - dot(_flat(v), pulled))
        # Entries of v and w have variance one: rounding is some eps of these norms.
        if defect > torch.finfo(pushed.dtype).eps ** 0.5 * (norm(pushed) + norm(pulled)):
            raise self._undifferentiable(f"the backward pass of {name} cannot be differentiated")

    def _undifferentiable(self, reason: str) -> DerivativeError:
        return DerivativeError(
            self._call,
            expected="outputs whose backward pass is made of differentiable operations",
            got=reason,
            remedy="Put torch operations in the place of that function, or give it a backward pass "
            "made of them.",
        )


class GaussNewtonKind:
    """Prepare J' H_L J v; a function is here a pair (outputs, loss)."""

    quantities = ("product", "curvature")

    def __init__(self, call: str) -> None:
        self.call = call

    def value(self, function: Model, x: Leaves) -> Tensor:
        """L(z(x))."""
        outputs, loss = function
        with twice_differentiable():
            return check_scalar(loss(outputs(x)), self.call).detach()

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


def _flat(parts: Leaves) -> Tensor:
    return torch.cat([part.detach().reshape(-1) for part in parts])


def _check_curved(slope: Leaves, call: str) -> None:
    if not any(part.grad_fn is not None for part in slope):  # zeros may require a gradient
        raise FunctionError(
            call,
            expected="a loss that is curved in the outputs of the model",
            got="a loss that is linear in them, whose Gauss-Newton matrix is zero",
            remedy="Let the model return what goes into the loss (the logits, the prediction), and "
            "the loss function compute the loss from it.",
        )


def _output_tensors(z: Any, call: str) -> tuple[list[Tensor], Callable[[Leaves], Any]]:
    """The tensors of z that depend on x, and the way to put others in their place."""
    found: list[Tensor] = []
    _replace(z, lambda tensor: found.append(tensor) or tensor)
    if not found:
        raise FunctionError(
            call,
            expected="outputs that depend on the parameters",
            got=f"a {type(z).__name__} without a tensor that does",
            remedy="Compute the outputs from the parameters given, without .detach() or no_grad.",
        )

    def rebuild(tensors: Leaves) -> Any:
        rest = iter(tensors)
        return _replace(z, lambda _: next(rest))

    return found, rebuild


def _replace(z: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """z with `function` applied to its differentiable tensors; all else is kept as it is."""
    if isinstance(z, Tensor):
        return function(z) if z.requires_grad else z
    if isinstance(z, MutableMapping):  # dicts, and the dict-like outputs of transformers
        result = copy.copy(z)
        for key in z:
            result[key] = _replace(z[key], function)
        return result
    if isinstance(z, tuple) and hasattr(z, "_fields"):
        return type(z)(*(_replace(part, function) for part in z))
    if isinstance(z, (list, tuple)):
        return type(z)(_replace(part, function) for part in z)
    return z
