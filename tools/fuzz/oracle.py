# SPDX-License-Identifier: Apache-2.0
"""Oracles: derivatives by torch alone, and by differences where torch has a wrong rule.

A product is what double backward and central differences of the gradient agree on. Where they do
not, and the gradient itself is that of the values, differences decide. Where differences over steps
of two lengths disagree, f is not smooth, and nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

DOUBLE = torch.float64


class Unclear(Exception):
    """The oracles do not agree: f is not smooth here, or has no derivative in torch."""


@dataclass(frozen=True)
class Expected:
    """A result, its uncertainty, and the size that errors are measured in."""

    value: Tensor
    error: float
    size: float
    by_differences: bool = False


def flat(tree: Any) -> Tensor:
    """All tensors of a tree as one float64 vector."""
    leaves = [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
    if not leaves:
        return torch.zeros(0, dtype=DOUBLE)
    return torch.cat([leaf.detach().reshape(-1).to(DOUBLE) for leaf in leaves])


class Oracle:
    """What Hesse's results are compared with, of a function f of a tree x in float64.

    Args:
        f: a scalar function.
        x: its point.
        outputs: the function under the last sums, or the model.
        loss: f of the outputs, for a model.
    """

    def __init__(
        self,
        f: Callable[[Any], Tensor],
        x: Any,
        outputs: Callable[[Any], Any] | None = None,
        loss: Callable[[Any], Tensor] | None = None,
    ) -> None:
        leaves, self._spec = pytree.tree_flatten(x)
        self._shapes = [leaf.shape for leaf in leaves]
        self._f, self._outputs, self._loss = f, outputs, loss
        self.x = flat(x)
        self.n = len(self.x)
        self._products: dict[tuple[bytes, bytes], Expected] = {}

    def tree(self, vector: Tensor) -> Any:
        """A vector in the form of x."""
        sizes = [shape.numel() for shape in self._shapes]
        parts = zip(vector.split(sizes), self._shapes, strict=True)
        return pytree.tree_unflatten([part.reshape(shape) for part, shape in parts], self._spec)

    def value(self, x: Tensor) -> float:
        """f(x)."""
        with torch.no_grad():
            return float(self._f(self.tree(x.clone())))

    def gradient(self, x: Tensor) -> Tensor:
        """grad f(x)."""
        return self._gradient(x, create_graph=False)[1].detach()

    def _gradient(self, x: Tensor, *, create_graph: bool) -> tuple[Tensor, Tensor]:
        # Clones, so that an operation in place may write to a leaf of the tree.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            x = x.detach().clone().requires_grad_()
            value = self._f(self.tree(x))
            if not value.requires_grad:
                raise Unclear("f does not depend on x")
            (gradient,) = torch.autograd.grad(
                value, x, create_graph=create_graph, allow_unused=True
            )
        return x, torch.zeros_like(x) if gradient is None else gradient

    def double_backward(self, v: Tensor, x: Tensor | None = None) -> Tensor:
        """H v by torch's derivative of torch's gradient."""
        x, gradient = self._gradient(self.x if x is None else x, create_graph=True)
        if not gradient.requires_grad:
            return torch.zeros_like(x)
        with torch.enable_grad():
            (product,) = torch.autograd.grad(gradient, x, v, allow_unused=True)
        return torch.zeros_like(x) if product is None else product

    def differences(self, v: Tensor, x: Tensor) -> tuple[Tensor, float]:
        """H v by central differences of the gradient over two steps, and their disagreement."""
        size = float(v.norm())
        if size == 0.0:
            return torch.zeros_like(x), 0.0
        center = self.gradient(x)
        estimates, jumps = [], []
        for h in (4e-4 / size, 2e-4 / size):
            ahead, behind = self.gradient(x + h * v), self.gradient(x - h * v)
            estimates.append((ahead - behind) / (2 * h))
            jumps.append(float((ahead - 2 * center + behind).norm()) / h)
        one, two = estimates
        # The derivatives from both sides differ by O(h) where f is smooth.
        if jumps[1] > 0.75 * jumps[0] and jumps[1] > 1e-7 * (float(two.norm()) + size):
            raise Unclear("a kink")
        return (4 * two - one) / 3, float((one - two).norm())

    def product(self, v: Tensor, x: Tensor | None = None) -> Expected:
        """H v, or `Unclear`; kept, since several checks of a case ask for the same."""
        x = self.x if x is None else x
        key = v.numpy().tobytes(), x.numpy().tobytes()
        if key not in self._products:
            self._products[key] = self._product(v, x)
        return self._products[key]

    def _product(self, v: Tensor, x: Tensor) -> Expected:
        length = float(v.norm()) or 1.0
        unit = v / length
        try:
            gradient = self.gradient(x)
            by_differences, doubt = self.differences(unit, x)
        except RuntimeError as error:
            raise Unclear(f"torch has no gradient: {error}") from error
        if not bool(torch.isfinite(by_differences).all() & torch.isfinite(gradient).all()):
            raise Unclear("differences are not finite")
        norm = float(by_differences.norm())
        # Rounding of differences: eps |g| / h; of a product, eps times intermediate sizes.
        size = norm + 1e-2 * float(gradient.norm()) + 1e-3 * abs(self.value(x)) + 1e-6
        if doubt > 1e-3 * size:
            raise Unclear("not smooth")
        # Elsewhere too: at x a part of the gradient may be zero, and right whatever it is times.
        w = torch.randn(self.n, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)
        near = x + 0.1 * w / w.norm()
        is_right = self._gradient_is_right(unit, x, gradient)
        if not (is_right and self._gradient_is_right(unit, near, self.gradient(near))):
            raise Unclear("torch's gradient is not that of the values")
        try:
            exact = self.double_backward(unit, x)
        except RuntimeError:
            exact = torch.full_like(by_differences, torch.nan)
        # `doubt` is the error of one difference, which the extrapolation of both takes away.
        if float((exact - by_differences).norm()) <= 3e-8 * size + 0.03 * doubt:
            return Expected(length * exact, 0.0, length * size)
        if not self._is_linear(unit, x, by_differences, 1e-4 * size + 10 * doubt):
            raise Unclear("differences are not linear in the direction")
        return Expected(
            length * by_differences, length * (1e-6 * size + 3 * doubt), length * size, True
        )

    def _is_linear(self, v: Tensor, x: Tensor, product: Tensor, tolerance: float) -> bool:
        w = torch.randn(self.n, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
        w = w / w.norm()
        other, both = self.differences(w, x)[0], self.differences(v + w, x)[0]
        return float((product + other - both).norm()) <= tolerance

    def _gradient_is_right(self, v: Tensor, x: Tensor, gradient: Tensor) -> bool:
        slopes, here = [], self.value(x)
        for h in (2e-4, 1e-4):
            ahead, behind = self.value(x + h * v), self.value(x - h * v)
            if abs(ahead - 2 * here + behind) > 1e-4 * (abs(here) + 1.0):
                raise Unclear("f jumps")
            slopes.append((ahead - behind) / (2 * h))
        slope, doubt = (4 * slopes[1] - slopes[0]) / 3, abs(slopes[0] - slopes[1])
        error = abs(float(gradient @ v) - slope)
        return error <= 1e-5 * (abs(slope) + float(gradient.norm()) + 1e-3) + 10 * doubt

    @property
    def first_leaf(self) -> slice:
        """The entries of the first leaf."""
        return slice(0, self._shapes[0].numel())

    # -- Matrices ----------------------------------------------------------------------------------

    @cached_property
    def dense(self) -> Expected:
        """H, row by row."""
        eye = torch.eye(self.n, dtype=DOUBLE)
        rows = [self.product(row) for row in eye]
        matrix = torch.stack([row.value for row in rows])
        error = sum(row.error for row in rows)
        size = max(row.size for row in rows) * self.n**0.5
        return Expected(matrix, error, size, any(row.by_differences for row in rows))

    def outputs_at(self, x: Tensor) -> Tensor:
        """The outputs, flat, with their history."""
        assert self._outputs is not None
        leaves = pytree.tree_leaves(self._outputs(self.tree(x)))
        return torch.cat([z.reshape(-1) for z in leaves])

    @cached_property
    def jacobian(self) -> Expected:
        """J, row by row by backward passes; its product must be a difference of the outputs."""
        try:
            return self._jacobian()
        except RuntimeError as error:
            raise Unclear(f"torch has no gradient: {error}") from error

    def _jacobian(self) -> Expected:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            x = self.x.clone().requires_grad_()
            z = self.outputs_at(x)
            if not z.requires_grad:
                raise Unclear("the outputs do not depend on x")
            rows = []
            for entry in z:
                grad = None
                if entry.requires_grad:
                    (grad,) = torch.autograd.grad(entry, x, retain_graph=True, allow_unused=True)
                rows.append(torch.zeros_like(x) if grad is None else grad)
        matrix = torch.stack(rows)
        size = float(matrix.norm()) + 1e-2 * float(z.detach().norm()) + 1e-6
        v = torch.linspace(-1.0, 1.3, self.n, dtype=DOUBLE)
        v = v / v.norm()
        h = 1e-4
        with torch.no_grad():
            ends = [self.outputs_at(self.x + t * v) for t in (2 * h, h, -h, -2 * h)]
        near, far = (ends[1] - ends[2]) / (2 * h), (ends[0] - ends[3]) / (4 * h)
        doubt = float((near - far).norm())
        error = float(((4 * near - far) / 3 - matrix @ v).norm())
        if not error <= 1e-6 * size + 3 * doubt or doubt > 1e-3 * size:
            raise Unclear("torch's Jacobian is not that of the values")
        return Expected(matrix, 0.0, size)

    @cached_property
    def gauss_newton(self) -> Expected:
        """J' H_L J, without weight decay."""
        assert self._outputs is not None
        assert self._loss is not None
        loss = self._loss
        z = self._outputs(self.tree(self.x)).detach()
        inner = Oracle(loss, z)
        curvature, jacobian = inner.dense, self.jacobian
        matrix = jacobian.value.T @ curvature.value @ jacobian.value
        size = curvature.size * jacobian.size**2
        error = curvature.error * jacobian.size**2
        return Expected(matrix, error, size, curvature.by_differences)
