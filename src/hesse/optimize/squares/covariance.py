# SPDX-License-Identifier: Apache-2.0
r"""The covariance of a least-squares estimate, $\sigma^2 (J^T J)^{-1}$, without forming J'J."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.krylov.lsmr import LSMR
from hesse.krylov.solve import solve
from hesse.operators.algebra import LinearOperator
from hesse.operators.diagonal import DiagonalOperator
from hesse.operators.low_rank import LowRankOperator
from hesse.operators.whole_on_shards import on_shards
from hesse.vectors.space import Space


@dataclass(frozen=True)
class Covariance:
    """The covariance as an operator, the rank of the Jacobian, and standard errors, flat."""

    operator: LinearOperator | None
    """None if there are not more residuals than the rank."""
    rank: int | None = None
    standard_errors: Tensor | None = None


def dense_covariance(
    space: Space, J: Tensor, cost: float, scale: Tensor, held: Tensor | None
) -> Covariance:
    """From the singular values of the Jacobian with scaled columns.

    Args:
        space: of the variables, as the caller has them.
        J: the weighted Jacobian (m, n).
        cost: half the sum of squares.
        scale: of the columns.
        held: variables at a bound, which count as known.
    """
    if held is not None:
        scale = torch.where(held, torch.zeros_like(scale), scale)
    D = scale.double()
    _, s, Vh = torch.linalg.svd(J.double() * D, full_matrices=False)
    epsilon = torch.finfo(J.dtype).eps * max(J.shape)
    keep = s > epsilon * s[0]
    rank, freedom = int(keep.sum()), J.shape[0] - int(keep.sum())
    if freedom <= 0:
        return Covariance(None, rank)
    V = D[:, None] * Vh[keep].T
    operator = LowRankOperator(
        space.whole_space, V.to(space.dtype), (2 * cost / freedom / s[keep] ** 2).to(space.dtype)
    )
    errors = math.sqrt(2 * cost / freedom) * torch.linalg.vector_norm(V / s[keep], dim=1)
    seen = Vh[keep].square().sum(0)
    unseen = (D > 0) & (seen < 1 - math.sqrt(epsilon))
    errors = torch.where(unseen, torch.full_like(errors, math.inf), errors)
    return Covariance(on_shards(operator, space), rank, errors.to(space.dtype))


def large_covariance(J: LinearOperator, cost: float, held: Tensor | None) -> Covariance:
    """By two least-squares solutions a product; J is taken to have full rank.

    Args:
        J: the weighted Jacobian.
        cost, held: as in `dense_covariance`.
    """
    freedom = J.codomain.n - J.domain.n
    if held is not None:
        freedom += J.domain.count(held)
        J = J @ DiagonalOperator(J.domain, (~held).to(J.dtype))
    return Covariance(None if freedom <= 0 else _Inverse(J, 2 * cost / freedom))


class _Inverse(LinearOperator):
    """c (J'J)^-1 v = c J^+ (J^+)' v: the shortest w with J'w = v, and y with J y = w."""

    def __init__(self, J: LinearOperator, c: float) -> None:
        super().__init__(J.domain, symmetric=True)
        self._J, self._c = J, c

    def _matvec(self, v: Tensor) -> Tensor:
        method, rtol = LSMR(), 100 * torch.finfo(v.dtype).eps
        w = solve(self._J.T, v, method, rtol=rtol).x
        return self._c * solve(self._J, w, method, rtol=rtol).x
