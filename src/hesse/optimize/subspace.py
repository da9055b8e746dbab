# SPDX-License-Identifier: Apache-2.0
"""The quadratic model on the span of a few directions, minimised for any damping at no product."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from hesse.operators.algebra import LinearOperator
from hesse.optimize.proposal import Candidate
from hesse.vectors.rows import stacked
from hesse.vectors.space import Space

# Directions that differ from others by less than this many eps, in squares, are rounding errors.
_DEPENDENT = 10
# The smallest curvature that counts as positive, relative to the largest.
_POSITIVE = 1e-12


class Subspace:
    r"""q(p) = g'p + p'Gp/2 on the span of directions p_i of which P'GP is known.

    $$ p(\lambda) = \arg\min_{p \in \operatorname{span}} q(p) + \tfrac{\lambda}{2} |p|^2 $$

    P'P is whitened and P'GP decomposed once; every further damping takes the combination of the
    directions alone. An eigenvector along which G + lambda is not positive is left out.

    Args:
        space: of the vectors.
        gradient: g.
        P: the directions as rows, of length 1.
        S: P'GP, float64.
        GP: the products with them, which `residual` needs.
    """

    def __init__(
        self,
        space: Space,
        gradient: Tensor,
        P: Tensor | None = None,
        S: Tensor | None = None,
        GP: Tensor | None = None,
    ) -> None:
        self._gradient = gradient
        self._is_empty = P is None or S is None
        if P is not None and S is not None:
            self._P, self._GP = P, GP
            self._S, self._c = 0.5 * (S + S.T), space.gram(P, gradient[None])[:, 0]
            rounding = _DEPENDENT * torch.finfo(space.dtype).eps
            self._basis, self._values = _eigen(space.gram(P, P), self._S, rounding)

    @classmethod
    def of_products(
        cls, space: Space, gradient: Tensor, pairs: Iterable[tuple[Tensor, Tensor]]
    ) -> Subspace:
        """On the span of p_i whose products G p_i are known: pairs (p_i, G p_i).

        Those with p_i = 0 are left out.

        >>> pairs = [(torch.tensor([1.0, 0.0]), torch.tensor([3.0, 0.0]))]
        >>> model = Subspace.of_products(Space.flat(2), torch.tensor([-1.0, -1.0]), pairs)
        >>> candidate = model.minimiser(1.0)
        >>> candidate.step, candidate.predicted                       # -1/4 + 3/32
        (tensor([0.2500, 0.0000]), -0.15625)
        """
        lengths = [(space.norm(p), p, Gp) for p, Gp in pairs]
        units = [(p / s, Gp / s) for s, p, Gp in lengths if 0.0 < s < math.inf]
        if not units:
            return cls(space, gradient)
        P = stacked(len(units), (p for p, _ in units))
        GP = stacked(len(units), (Gp for _, Gp in units))
        return cls(space, gradient, P, space.gram(P, GP), GP)

    @classmethod
    def of_two(
        cls, space: Space, gradient: Tensor, G: LinearOperator, last: Tensor | None, new: Tensor
    ) -> Subspace:
        """On the span of two directions, by p'Gp of the one and the product of the other.

        p'Gp of a Gauss-Newton matrix takes half a product: J p alone. Without `last`, or where it
        is zero, it is all that is taken.

        >>> from hesse import dense_operator
        >>> G = dense_operator(torch.diag(torch.tensor([3.0, 1.0])))
        >>> model = Subspace.of_two(Space.flat(2), -torch.ones(2), G, None, torch.eye(2)[0])
        >>> model.minimiser(1.0).step
        tensor([0.2500, 0.0000])
        """
        given = [p for p in (new, last) if p is not None]
        units = [p / s for p in given if 0.0 < (s := space.norm(p)) < math.inf]
        if not units:
            return cls(space, gradient)
        P = stacked(len(units), units)
        if len(P) == 1:
            return cls(
                space, gradient, P, P.new_tensor([[G._curvature(P[0])]], dtype=torch.float64)
            )
        first = space.gram(P, G._matvec(P[0])[None])[:, 0]
        second = torch.stack([first[1], first.new_tensor(G._curvature(P[1]))])
        return cls(space, gradient, P, torch.stack([first, second]))

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
        assert self._GP is not None
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
