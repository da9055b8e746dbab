# SPDX-License-Identifier: Apache-2.0
"""Residuals of which each of several processes has those of its own data.

With products alone they stay where they are. As a matrix the Jacobian is gathered, and with it the
residuals, and variables that are sharded: it has few entries, and what follows from it is then the
same on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hesse.curvature.operator import CurvatureOperator
from hesse.operators.algebra import LinearOperator
from hesse.operators.diagonal import DiagonalOperator
from hesse.optimize.squares.residual_point import Residuals
from hesse.optimize.squares.robust_loss import RobustLoss
from hesse.vectors.rows import transposed
from hesse.vectors.space import Space, Tree


class SharedResiduals(Residuals):
    """The residuals of all ranks.

    Args:
        r: those of this rank, in one tensor; None if it has none.
        start: the Jacobian of all at the start, a `RowsOfRanks`.
        loss, is_dense: as of `Residuals`.
    """

    def __init__(
        self,
        r: Callable[[Tree], Tensor] | None,
        start: Any,
        loss: RobustLoss,
        *,
        is_dense: bool,
    ) -> None:
        given: Space = start.domain
        here: Space = start.codomain
        assert here.ranks is not None
        if is_dense:
            start = start.with_params(replace(given.whole_space, ranks=here.ranks))
        super().__init__(r or (lambda _: here.zeros()), start, loss, is_dense=is_dense)
        self.given, self._ranks = given, here.ranks
        if is_dense:
            self.codomain = here.whole_space

    def value(self, x: Tensor) -> Tensor:
        tree = self.space.whole_tree(self.space.unflatten(x.clone()))
        checked = x if self.space.shards is None else None
        return self._gathered(self._ranks.each(lambda: self._value_at(tree), checked))

    def weighted(self, x: Tensor, w: Tensor | None) -> LinearOperator:
        if not self.is_dense:
            return super().weighted(x, w)
        J: Any = self.operator(x)
        J = J.with_params(self.given)
        return J if w is None else DiagonalOperator(J.codomain, self._here.part(w)) @ J

    def tree(self, r: Tensor) -> Tree:
        return self._here.unflatten(self._here.part(r) if self.is_dense else r)

    def as_in_fit(self, *vectors: Tensor) -> Sequence[Tensor]:
        return list(self.given.whole(torch.stack(vectors))) if self.is_dense else vectors

    def as_given(self, x: Tensor) -> Tree:
        return self.given.unflatten(self.given.part(x) if self.is_dense else x)

    def _product(self, J: CurvatureOperator, v: Tensor) -> Tensor:
        return self._gathered(J._matvec(v))

    def _vectorised(self, x: Tensor) -> Tensor | None:
        rows = self._where_all_can(super()._vectorised, x)
        return None if rows is None else self._here.whole(transposed(rows)).T

    def _second_order(self, x: Tensor, u: Tensor) -> Tensor | None:
        S = self._where_all_can(super()._second_order, x, self._here.part(u))
        return None if S is None else self._ranks.total(S)

    def _gathered(self, part: Tensor) -> Tensor:
        return self._here.whole(part[None])[0] if self.is_dense else part

    def _where_all_can(self, compute: Callable[..., Tensor | None], *args: Any) -> Tensor | None:
        """What compute() gives on this rank; None where it gives nothing on some rank."""
        found = self._ranks.together(lambda: compute(*args))
        can = all(bool(row[0]) for row in self._ranks.gather(found is not None))
        return found if can else None
