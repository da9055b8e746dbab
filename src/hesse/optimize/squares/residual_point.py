# SPDX-License-Identifier: Apache-2.0
"""Residuals with their Jacobian at a point, computed once and counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from hesse.ad.dense_jacobian import dense_jacobian
from hesse.ad.jacobian import other_outputs
from hesse.curvature.operator import CurvatureOperator
from hesse.errors import DerivativeError, NonFiniteError
from hesse.operators.algebra import LinearOperator
from hesse.operators.diagonal import DiagonalOperator
from hesse.optimize.point import Counts
from hesse.optimize.squares.robust_loss import RobustLoss
from hesse.ranks import is_outside_domain
from hesse.surroundings import users_contexts
from hesse.vectors.space import Space, Tree
from hesse.vectors.trees import walk

# Of a matrix by torch's vectorised derivatives against one product: its relative error.
_SAME = 1e3


class Residuals:
    """A function r(x) as a map from flat vectors to points.

    Args:
        r: the function of a tree.
        start: its Jacobian at the start; `at` gives those at other points.
        loss: how residuals count.
        is_dense: whether Jacobians are wanted as matrices.
        jac: x, flat -> the matrix, where the caller has a way to it.
    """

    def __init__(
        self,
        r: Callable[[Tree], Tree],
        start: CurvatureOperator,
        loss: RobustLoss,
        *,
        is_dense: bool,
        jac: Callable[[Tree], Tensor] | None = None,
    ) -> None:
        self._r, self.start, self.loss, self.is_dense = r, start, loss, is_dense
        self._jac = jac
        self.given = self.space = start.domain
        self.codomain: Space = start.codomain
        self._here = self.codomain  # the space of what r gives
        self.counts = Counts()
        self.products = 0
        self._vectorises: bool | None = None

    def point(self, x: Tensor, *, is_trial: bool = True) -> ResidualPoint:
        """A point; nothing is computed before it is asked for."""
        return ResidualPoint(x, self, is_trial=is_trial)

    def evaluate(self, x: Tensor) -> Tensor:
        """r(x), flat, counted."""
        self.counts.nfev += 1
        return self.value(x)

    def value(self, x: Tensor) -> Tensor:
        """r(x), flat."""
        return self._value_at(self.space.unflatten(x.clone()))  # r may write to its argument

    def _value_at(self, x: Tree) -> Tensor:
        with torch.no_grad(), users_contexts():
            outputs = self._r(x)
        return self._here.flatten(outputs, what="r(x)").detach().clone()

    def operator(self, x: Tensor) -> CurvatureOperator:
        """The Jacobian at a point."""
        return self.start.at(self.space.unflatten(x))

    def weighted(self, x: Tensor, w: Tensor | None) -> LinearOperator:
        """The Jacobian at a point, with weights for its rows."""
        J = self.operator(x)
        return J if w is None else DiagonalOperator(J.codomain, w) @ J

    def tree(self, r: Tensor) -> Tree:
        """Residuals in the form of r(x)."""
        return self.codomain.unflatten(r)

    def as_in_fit(self, *vectors: Tensor) -> Sequence[Tensor]:
        """Vectors like x0, flat, as the fit has them."""
        return vectors

    def as_given(self, x: Tensor) -> Tree:
        """A vector of the fit in the form of x0."""
        return self.space.unflatten(x)

    def matrix(self, x: Tensor) -> Tensor:
        """The Jacobian as a matrix (m, n): vectorised if that gives the same as the operator."""
        self.counts.njev += 1
        if self._jac is not None:
            return self._given(self._jac, x)
        matrix = None if self._vectorises is False else self._vectorised(x)
        if matrix is not None and self._vectorises is None:
            self._vectorises = self._is_same(matrix, self.operator(x))
        if matrix is None or not self._vectorises:
            self._vectorises = False
            self.products += self.space.n
            return self.operator(x).to_dense()
        self.products += min(self.space.n, self.codomain.n)
        return matrix

    def _product(self, J: CurvatureOperator, v: Tensor) -> Tensor:
        """J v, as residuals are."""
        return J._matvec(v)

    def _given(self, jac: Callable[[Tree], Tensor], x: Tensor) -> Tensor:
        """The caller's matrix; the first one is compared with a product."""
        with users_contexts():
            matrix = jac(self.space.unflatten(x.clone()))
        shape = self.codomain.n, self.space.n
        if not (isinstance(matrix, Tensor) and tuple(matrix.shape) == shape):
            got = tuple(matrix.shape) if isinstance(matrix, Tensor) else type(matrix).__name__
            raise DerivativeError(
                expected=f"J(x0) to be a tensor of shape {shape}",
                got=str(got),
                remedy="Return one row for each residual, one column for each variable.",
            )
        matrix = matrix.detach()
        if self._vectorises is None:
            self._vectorises = self._is_same(matrix, self.operator(x))
            if not self._vectorises:
                raise DerivativeError(
                    expected="J(x0) to be the Jacobian of r",
                    got="another matrix: its product with a vector differs",
                    remedy="Compare it with torch.func.jacrev(r)(x0).",
                )
        self.products += min(shape)
        return matrix

    def second_order(self, x: Tensor, u: Tensor) -> Tensor | None:
        """The sum of u_i times the Hessian of r_i, shape (n, n); None if torch cannot give it."""
        if self._vectorises is False:
            return None
        self.counts.nhev += 1
        return self._second_order(x, u)

    def _second_order(self, x: Tensor, u: Tensor) -> Tensor | None:
        try:
            with torch.enable_grad():
                return torch.func.hessian(lambda x: u @ self._flat(x))(x).detach()
        except (RuntimeError, NotImplementedError):
            return None

    def _flat(self, x: Tensor) -> Tensor:
        """r(x), flat, for a transformation of torch.func."""
        with users_contexts():
            outputs = self._r(self.space.unflatten(x))
        return torch.cat([leaf.reshape(-1) for _, leaf in walk(outputs, "r(x)")])

    def _vectorised(self, x: Tensor) -> Tensor | None:
        try:
            J = dense_jacobian(self._flat, x, self._here.size)
        except (RuntimeError, NotImplementedError, DerivativeError):
            return None
        if len(J) != self._here.size:
            raise other_outputs(len(J), self._here.size)
        return J

    def _is_same(self, matrix: Tensor, J: CurvatureOperator) -> bool:
        """Whether a product with one vector agrees with that of the operator up to rounding."""
        v = self.space.gaussian(torch.Generator().manual_seed(0))
        difference = self.codomain.norm(self._product(J, v) - matrix @ v)
        size = float(torch.linalg.matrix_norm(matrix.double()))
        return difference <= _SAME * torch.finfo(matrix.dtype).eps * size


class ResidualPoint:
    """x with r(x), the cost and the Jacobian there, each computed when first asked for."""

    def __init__(self, x: Tensor, residuals: Residuals, *, is_trial: bool) -> None:
        self.x, self._of, self._is_trial = x, residuals, is_trial

    @cached_property
    def _value(self) -> tuple[Tensor | None, float]:
        """r and the cost; None and infinity where r is not finite or raises."""
        counts = self._of.counts
        try:
            r = self._of.evaluate(self.x)
        except Exception as error:
            if not (self._is_trial and is_outside_domain(error)):
                raise
            counts.note(error)
            return None, math.inf
        cost = self._of.loss.cost(self._of.codomain, r)
        return (r, cost) if math.isfinite(cost) else (None, math.inf)

    @property
    def cost(self) -> float:
        """The sum of losses; infinite where a search may not move."""
        return self._value[1]

    @property
    def r(self) -> Tensor:
        """The residuals."""
        r = self._value[0]
        if r is None:
            raise NonFiniteError(
                expected="finite residuals r(x0), with a finite sum of squares",
                got="NaN or Inf",
                remedy="Start at a point where r is finite, or scale r down.",
            )
        return r

    @property
    def rounding_error(self) -> float:
        """How much the cost may change through rounding."""
        return 10 * torch.finfo(self.x.dtype).eps * self.cost

    @cached_property
    def weighted(self) -> tuple[Tensor | None, Tensor]:
        """The weights w of the rows of the Jacobian, and the residuals s of the step."""
        return self._of.loss.weights(self.r)

    @cached_property
    def matrix(self) -> Tensor:
        """w J as a matrix."""
        w = self.weighted[0]
        return self._jacobian if w is None else w[:, None] * self._jacobian

    @cached_property
    def _jacobian(self) -> Tensor:
        """J, without weights."""
        return self._of.matrix(self.x)

    @cached_property
    def operator(self) -> LinearOperator:
        """w J as an operator."""
        return self._of.weighted(self.x, self.weighted[0])

    @cached_property
    def gradient(self) -> Tensor:
        """The gradient of the cost."""
        if self._of.is_dense:
            return self.matrix.T @ self.weighted[1]
        self._of.counts.njev += 1
        self._of.products += 1
        return self._of.operator(self.x)._rmatvec(self._of.loss.slope(self.r))

    @cached_property
    def second_order(self) -> Tensor | None:
        """What the Hessian of the cost has beyond (w J)'(w J), shape (n, n)."""
        S = self._of.second_order(self.x, self._of.loss.slope(self.r))
        missing = self._of.loss.missing_curvature(self.r)
        if S is not None and missing is not None:
            S = S + self._jacobian.T @ (missing[:, None] * self._jacobian)
        return S if S is not None and self._of.space.all_finite(S) else None

    @cached_property
    def is_usable(self) -> bool:
        """Whether residuals and Jacobian are finite here, so that a search may move here."""
        if not math.isfinite(self.cost):
            return False
        try:
            finite = self._of.space.all_finite(self.gradient)
        except Exception as error:
            if not (self._is_trial and is_outside_domain(error)):
                raise
            self._of.counts.note(error)
            return False
        return finite and (not self._of.is_dense or self._of.codomain.all_finite(self.matrix))
