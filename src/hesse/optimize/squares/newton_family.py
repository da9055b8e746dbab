# SPDX-License-Identifier: Apache-2.0
r"""The steps of Newton's method for residuals that stay large.

The Hessian of the cost is $A^T A + S$ with $S = \sum_i u_i \nabla^2 r_i$, u the slopes of the
losses. Gauss-Newton steps leave S out, and converge slowly or not at all where u is large; with S
the convergence is quadratic. By one eigendecomposition there is a step for every trust radius.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from hesse.optimize.squares.step_family import Step, damping_of_length

_RADIUS_RTOL = 1e-3


class NewtonFamily:
    """The minimisers of g'p + p'H p / 2 for |p| <= radius.

    Args:
        H, g: in scaled variables.
        dtype: of the variables.

    >>> H, g = torch.diag(torch.tensor([2.0, -1.0])).double(), torch.tensor([2.0, 0.0]).double()
    >>> step = NewtonFamily(H, g, torch.float64).within(1.0)      # the hard case
    >>> round(step.length, 3), round(float(step.p[0]), 3)
    (1.0, -0.667)
    """

    is_complete = True
    products = 0

    def __init__(self, H: Tensor, g: Tensor, dtype: torch.dtype) -> None:
        H, g = H.double(), g.double()
        h, self._Q = torch.linalg.eigh((H + H.T) / 2)
        self._h, self._g, self._dtype = h.cpu(), (self._Q.T @ g).cpu(), dtype

    @property
    def rank(self) -> int:
        """The number of eigenvalues."""
        return len(self._h)

    @property
    def is_definite(self) -> bool:
        """Whether H is positive definite up to rounding."""
        size = float(self._h.abs().max())
        return float(self._h[0]) > torch.finfo(torch.float64).eps * len(self._h) * size

    @cached_property
    def full_length(self) -> float:
        """The length of Newton's step; infinite if H is not positive definite."""
        return float((self._g / self._h).norm()) if self.is_definite else math.inf

    @cached_property
    def full_decrease(self) -> float:
        """What Newton's step would take from the model; infinite for negative curvature."""
        return 0.5 * float((self._g**2 / self._h).sum()) if self.is_definite else math.inf

    def is_within(self, radius: float) -> bool:
        """Whether Newton's step is at most so long."""
        return self.full_length <= radius

    def promises(self, decrease: float) -> bool:
        """Whether Newton's step takes more than that from the model."""
        return self.full_decrease > decrease

    def within(self, radius: float) -> Step:
        """The minimiser for |p| <= radius; More & Sorensen 1983, doi:10.1137/0904038."""
        is_limited = self.full_length > radius * (1 + _RADIUS_RTOL)
        y, damping = self._limited(radius) if is_limited else (-self._g / self._h, 0.0)
        predicted = -float(self._g @ y + 0.5 * (self._h * y) @ y)
        p = (self._Q @ y.to(self._Q)).to(self._dtype)
        return Step(p, float(y.norm()), predicted, is_limited, damping)

    def correction(self, r: Tensor, damping: float) -> Tensor | None:
        """None: the second derivatives are in the model."""

    def _limited(self, radius: float) -> tuple[Tensor, float]:
        """The step of that length, with its coefficients in the eigenvectors."""
        least = max(0.0, -float(self._h[0]))
        tiny = torch.finfo(torch.float64).eps * float(self._h.abs().max())
        shifted = self._h + least + tiny
        y = -self._g / shifted
        length = float(y.norm())
        if length < radius:  # the hard case: the rest goes along the lowest eigenvector
            rest = float(y[1:].norm())
            y[0] = math.copysign(math.sqrt(radius**2 - rest**2), -float(self._g[0]))
            return y, least
        extra = damping_of_length(shifted, self._g, radius)
        return -self._g / (shifted + extra), least + extra


class EmbeddedFamily(NewtonFamily):
    """The same for some of the variables, with zeros for the others."""

    def __init__(self, family: NewtonFamily, free: Tensor) -> None:
        vars(self).update(vars(family))
        self._free = free

    def within(self, radius: float) -> Step:
        step = super().within(radius)
        p = torch.zeros_like(self._free, dtype=self._dtype)
        p[self._free] = step.p
        return replace(step, p=p)
