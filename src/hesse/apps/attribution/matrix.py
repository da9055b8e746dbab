# SPDX-License-Identifier: Apache-2.0
"""The matrix A of influences, A = H + mu I or an approximation of it, and systems with it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.boundary import warn
from hesse.curvature.gauss_newton import ggn_operator
from hesse.curvature.hessian import hessian_operator
from hesse.curvature.kfac import ekfac_operator
from hesse.errors import (
    ArgumentError,
    OperatorError,
    ShapeError,
    Status,
    check_choice,
    is_number,
)
from hesse.krylov.inverse import inverse_operator
from hesse.krylov.solution import Solution
from hesse.krylov.solve import solve
from hesse.operators.algebra import LinearOperator
from hesse.operators.dense import aslinearoperator
from hesse.risk.risk import Risk
from hesse.vectors.space import Space, Tree

Curvature = Literal["ggn", "hessian", "ekfac"] | LinearOperator | Tensor


@dataclass(frozen=True)
class Matrix:
    """A, and how systems with it are solved."""

    risk: Risk
    params: Tree
    curvature: Curvature
    damping: float
    rtol: float
    preconditioner: LinearOperator | Tensor | str | None = None
    max_products: int | None = None
    generator: torch.Generator | None = None
    progress: bool = False
    checkpoint: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.curvature, (LinearOperator, Tensor)):
            check_choice("curvature", self.curvature, ["ggn", "hessian", "ekfac"])
        if not (is_number(self.damping) and 0.0 <= self.damping < math.inf):
            raise ArgumentError(
                expected="damping, the mu >= 0 of (H + mu I)",
                got=repr(self.damping),
                remedy="Leave it out for none. The weight decay of the risk is in H already.",
            )

    @property
    def space(self) -> Space:
        """Of the parameters."""
        return Space.of(self.params, what="params", ranks=self.risk.ranks)

    def of(self, risk: Risk) -> LinearOperator:
        """The curvature of a risk, weight decay included, without the damping."""
        if self.curvature == "ggn":
            return ggn_operator(risk, self.params)
        if self.curvature == "hessian":
            return hessian_operator(risk, self.params)
        if self.curvature == "ekfac":
            return ekfac_operator(risk, self.params, generator=self.generator)
        A = aslinearoperator(self.curvature)
        n = self.space.n
        if A.shape != (n, n) or not A.symmetric:
            raise ShapeError(
                expected=f"curvature to be a symmetric operator of shape ({n}, {n})",
                got=f"shape {A.shape}" + ("" if A.symmetric else ", not known to be symmetric"),
                remedy="Give an operator on the parameters, with the weight decay in it.",
            )
        return A

    def solved(self, A: LinearOperator, b: Tensor) -> Solution:
        """(A + mu I)^-1 b for a block b, all columns at once.

        Raises:
            OperatorError: the matrix is not positive definite.
        """
        is_implicit = isinstance(self.curvature, str) and self.curvature != "ekfac"
        solution = solve(
            *(A, b, "block-cg" if is_implicit else "auto", self._preconditioner),
            damping=self.damping,
            rtol=self.rtol,
            max_products=self.max_products,
            generator=self.generator,
            progress=self.progress,
            checkpoint=self.checkpoint,
        )
        if solution.status is Status.NEGATIVE_CURVATURE or solution.direction is not None:
            raise OperatorError(
                expected="H + mu I to be positive definite, as at a minimum",
                got=f"a direction of negative or zero curvature, after {solution.products} products"
                f" (damping mu = {self.damping:g})",
                remedy="Train further; or use curvature='ggn', or a damping above the most "
                "negative eigenvalue, -hesse.eigsh(H, 1, 'SA').values.",
            )
        if not solution.converged:
            warn(f"The influences are not exact. {solution.status.value}")
        return solution

    @cached_property
    def _preconditioner(self) -> LinearOperator | Tensor | str | None:
        if not isinstance(self.preconditioner, str) or self.preconditioner != "ekfac":
            return self.preconditioner
        E = ekfac_operator(self.risk, self.params, damping=self.damping, generator=self.generator)
        return inverse_operator(E)
