# SPDX-License-Identifier: Apache-2.0
"""Loss functions of residuals: how much one of them counts, and the weights that this gives.

With z = (r_i / C)^2 the cost is C^2 / 2 times the sum of rho(z), so that rho(z) = z is least
squares. A Gauss-Newton step is that of least squares with other residuals and another Jacobian
(Triggs et al. 2000, doi:10.1007/3-540-44480-7_21, section 4.3, for each residual alone).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.errors import ArgumentError, FunctionError, check_choice, check_positive
from hesse.vectors.space import Space

Rho = Callable[[Tensor], Tensor]

# The least curvature of a residual, relative to its weight: that of an outlier may be negative.
_LEAST_CURVATURE = 1e-8


def _soft_l1(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    root = torch.sqrt(1 + z)
    return 2 * z / (1 + root), 1 / root, -0.5 / root**3


def _huber(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    inside, root = z <= 1, torch.sqrt(z.clamp(min=1))
    one, zero = torch.ones_like(z), torch.zeros_like(z)
    return (
        torch.where(inside, z, 2 * root - 1),
        torch.where(inside, one, 1 / root),
        torch.where(inside, zero, -0.5 / root**3),
    )


def _cauchy(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    t = 1 / (1 + z)
    return torch.log1p(z), t, -(t**2)


def _arctan(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    t = 1 / (1 + z**2)
    return torch.arctan(z), t, -2 * z * t**2


_LOSSES = {"huber": _huber, "soft_l1": _soft_l1, "cauchy": _cauchy, "arctan": _arctan}
LOSSES = ("linear", *_LOSSES)
"""The names of the losses."""


@dataclass(frozen=True)
class RobustLoss:
    """rho and the scale C of the residuals.

    Args:
        rho: the name of a loss, or a function z -> rho(z), entry by entry, in torch.
        scale: C, in the units of the residuals.

    >>> loss = RobustLoss("cauchy", 2.0)
    >>> loss.cost(Space.flat(1), torch.tensor([2.0]))   # 2^2 / 2 log(1 + 1)
    1.3862...
    """

    rho: str | Rho = "linear"
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_positive(f_scale=self.scale)
        if not callable(self.rho):
            check_choice("loss", self.rho, LOSSES)

    @property
    def is_linear(self) -> bool:
        """Whether this is plain least squares."""
        return self.rho == "linear"

    def cost(self, space: Space, r: Tensor) -> float:
        """C^2 / 2 times the sum of rho."""
        if self.is_linear:
            return 0.5 * space.inner(r, r)
        value, _, _ = self._derivatives(r)
        return 0.5 * self.scale**2 * space.inner(torch.ones_like(value), value)

    def weights(self, r: Tensor) -> tuple[Tensor | None, Tensor]:
        """w and s, with which w J is the Jacobian and s the residuals of the Gauss-Newton step.

        s'(w J) = rho' r'J is the gradient of the cost; w^2 = rho' + 2 z rho'' the curvature of one
        residual, if that is positive. w is None if it is one.
        """
        if self.is_linear:
            return None, r
        _, first, second = self._derivatives(r)
        curvature = first + 2 * second * (r / self.scale) ** 2
        w = torch.sqrt(torch.maximum(curvature, _LEAST_CURVATURE * first))
        return w, torch.where(w > 0, r * first / w, torch.zeros_like(r))

    def missing_curvature(self, r: Tensor) -> Tensor | None:
        """rho' + 2 z rho'' - w^2: negative where the curvature is; None for least squares."""
        if self.is_linear:
            return None
        _, first, second = self._derivatives(r)
        curvature = first + 2 * second * (r / self.scale) ** 2
        return torch.clamp(curvature - _LEAST_CURVATURE * first, max=0.0)

    def slope(self, r: Tensor) -> Tensor:
        """rho' r: the derivative of the cost in the residuals."""
        return r if self.is_linear else r * self._derivatives(r)[1]

    def _derivatives(self, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """rho, rho' and rho'' at z."""
        z = (r / self.scale) ** 2
        if isinstance(self.rho, str):
            return _LOSSES[self.rho](z)
        return _differentiated(self.rho, z)


def _differentiated(rho: Rho, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A function of the caller's and its derivatives, entry by entry."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = rho(z)
        if not isinstance(value, Tensor) or value.shape != z.shape:
            raise FunctionError(
                expected=f"loss(z) to be a tensor of the shape of z, {tuple(z.shape)}",
                got=str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__,
                remedy="Return rho(z) for every entry of z; the derivatives are not needed.",
            )
        if not value.requires_grad:
            raise ArgumentError(
                expected="loss(z) to depend on z",
                got="a constant",
                remedy="Compute it from z by functions of torch.",
            )
        (first,) = torch.autograd.grad(value.sum(), z, create_graph=True)
        second = torch.zeros_like(z)
        if first.requires_grad:
            (second,) = torch.autograd.grad(first.sum(), z)
    return value.detach(), first.detach(), second.detach()
