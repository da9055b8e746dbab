# SPDX-License-Identifier: Apache-2.0
"""The quadratic model on the span of a few directions, minimised for any damping at no product."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from hesse.optimize.proposal import Candidate
from hesse.vectors.rows import stacked
from hesse.vectors.space import Space

# Directions that differ from others by less than this many eps, in squares, are rounding errors.
_DEPENDENT = 10
# The smallest curvature that counts as positive, relative to the largest.
_POSITIVE = 1e-12


class Subspace:
    r"""q(p) = g'p + p'Gp/2 on the span of directions p_i whose products G p_i are known.

    $$ p(\lambda) = \arg\min_{p \in \operatorname{span}} q(p) + \tfrac{\lambda}{2} |p|^2 $$

    P'P is whitened and P'GP decomposed once; every further damping takes the combination of the
    directions alone. An eigenvector along which G + lambda is not positive is left out.

    Args:
        space: of the vectors.
        gradient: g.
        pairs: (p_i, G p_i); those with p_i = 0 are left out.

    >>> pairs = [(torch.tensor([1.0, 0.0]), torch.tensor([3.0, 0.0]))]
    >>> model = Subspace(Space.flat(2), torch.tensor([-1.0, -1.0]), pairs)
    >>> candidate = model.minimiser(1.0)
    >>> candidate.step, candidate.predicted                       # -1/4 + 3/32
    (tensor([0.2500, 0.0000]), -0.15625)
    """

    def __init__(
        self, space: Space, gradient: Tensor, pairs: Iterable[tuple[Tensor, Tensor]]
    ) -> None:
        self._gradient = gradient
        lengths = [(space.norm(p), p, Gp) for p, Gp in pairs]
        units = [(p / s, Gp / s) for s, p, Gp in lengths if 0.0 < s < math.inf]
        self._is_empty = not units
        if units:
            self._P = stacked(len(units), (p for p, _ in units))
            self._GP = stacked(len(units), (Gp for _, Gp in units))
            S = space.gram(self._P, self._GP)
            self._S, self._c = 0.5 * (S + S.T), space.gram(self._P, gradient[None])[:, 0]
            rounding = _DEPENDENT * torch.finfo(space.dtype).eps
            self._basis, self._values = _eigen(space.gram(self._P, self._P), self._S, rounding)

    @property
    def least_damping(self) -> float:
        """The damping above which the model is convex on the span; 0 if it is without any."""
        return 0.0 if self._is_empty else max(0.0, -float(self._values.min()))

    def minimiser(self, damping: float) -> Candidate:
        """p(lambda), and the change of the undamped model."""
        if self._is_empty:
            return Candidate(torch.zeros_like(self._gradient), 0.0)
        y = self._coefficients(damping)
        predicted = float(self._c @ y + 0.5 * y @ self._S @ y)
        return Candidate(y.to(self._gradient) @ self._P, predicted)

    def residual(self, damping: float) -> Tensor:
        """-g - (G + lambda I) p(lambda)."""
        if self._is_empty:
            return -self._gradient
        y = self._coefficients(damping).to(self._gradient)
        return -self._gradient - y @ self._GP - damping * (y @ self._P)

    def _coefficients(self, damping: float) -> Tensor:
        """Those of p(lambda) in the directions, float64."""
        curvature = self._values + damping
        is_positive = curvature > _POSITIVE * curvature.abs().max()
        slopes = self._basis.T @ self._c
        return -self._basis @ torch.where(is_positive, slopes / curvature, torch.zeros_like(slopes))


def _eigen(B: Tensor, S: Tensor, rounding: float) -> tuple[Tensor, Tensor]:
    """A basis in which B is the identity and S diagonal, and that diagonal."""
    b, V = torch.linalg.eigh(B)
    is_kept = b > rounding * b[-1]
    W = V[:, is_kept] * b[is_kept].rsqrt()
    values, Q = torch.linalg.eigh(W.T @ S @ W)
    return W @ Q, values
