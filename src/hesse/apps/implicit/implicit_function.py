# SPDX-License-Identifier: Apache-2.0
"""`ImplicitFunction`: the solution of an equation as a differentiable function of its parameters.

It finds solutions and remembers the last ones, from which the next search and the next adjoint
system start. The derivatives are those of implicit_root.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hesse.apps.implicit.adjoint import AdjointSystem
from hesse.apps.implicit.equation import (
    Equation,
    Spaces,
    flat,
    space_of,
)
from hesse.apps.implicit.implicit_root import ImplicitRoot
from hesse.apps.implicit.report import ImplicitReport
from hesse.boundary import public, warn
from hesse.errors import OperatorError, Status
from hesse.result import OneLine
from hesse.vectors.space import Space, Tree

# Of systems that only tell how large an error is.
_LOOSE_RTOL = 0.1
# A point of the user's farther than this from a solution, relative to its norm, is none.
_FAR = 0.1

Solve = Callable[[Any, Any], Any]
"""(x0, l) -> x, a user's way to a solution."""


class ImplicitFunction(OneLine, ABC):
    """l -> x with F(x, l) = 0: differentiable in l, any number of times, and under `torch.vmap`.

    It is made by `argmin`, `fixed_point` or `root`.

    Attributes:
        report: how exact the last solution and the last adjoint are.
    """

    def __init__(
        self,
        equation: Equation,
        x0: Tree,
        solve: Solve | None,
        system: AdjointSystem,
        *,
        warm_start: bool,
        estimate_error: bool,
    ) -> None:
        self.equation, self.system = equation, system
        self._space = Space.of(x0, what="x0")
        self._x = self._space.flatten(x0, what="x0").detach().clone()
        self._solve, self._keeps = solve, warm_start
        self._estimates = estimate_error
        self._adjoints: dict[tuple[bool, int], Tensor] = {}
        self._is_closed = False
        self.report: ImplicitReport | None = None

    @public("{self}(l)")
    def __call__(self, l: Tree) -> Any:
        """The solution x(l), a tree like x0, with a graph if l has one.

        Args:
            l: the parameters, a tensor or a tree of tensors.
        """
        space = space_of(l, "l")
        call = Call(self, Spaces(self._space, space))
        x = ImplicitRoot.apply(call, flat(space, l, "l"))
        return self._space.unflatten(x)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(l) -> x: {self._space.describe()}"

    @abstractmethod
    def search(self, spaces: Spaces, x0: Tensor, l: Tensor) -> tuple[Tensor, ImplicitReport]:
        """x with F(x, l) = 0, from x0, by the library's own method."""

    def check_found(self, spaces: Spaces, x: Tensor, l: Tensor) -> float | None:
        """The least curvature found at a user's solution, if that is to be a minimum."""
        return None

    # -- Solutions ---------------------------------------------------------------------------------

    def find(self, spaces: Spaces, l: Tensor) -> Tensor:
        """A solution at l, from the last one."""
        if not self._is_closed:
            self._warn_of_other_gradients(spaces, l)
        if self._solve is None:
            x, report = self.search(spaces, self._x, l)
        else:
            given = self._solve(spaces.x.unflatten(self._x.clone()), spaces.l.unflatten(l.clone()))
            x = flat(spaces.x, given, "solve(x0, l)").detach().clone()
            spaces.x.check_finite(x, "solve(x0, l)")
            report = ImplicitReport(
                self._residual_norm(spaces, x, l),
                min_curvature=self.check_found(spaces, x, l),
            )
        before = 0 if self.report is None else self.report.products
        self.report = replace(report, products=before)
        if self._keeps:
            self._x = x.clone()
        return x

    def _residual_norm(self, spaces: Spaces, x: Tensor, l: Tensor) -> float:
        return spaces.x.norm(self.equation.residual_at(spaces, x, l))

    def _warn_of_other_gradients(self, spaces: Spaces, l: Tensor) -> None:
        """A tensor that the user's function closes over gets no gradient, which would be silent."""
        self._is_closed = True
        with torch.enable_grad():
            value = self.equation.value(spaces, self._x.detach(), l)
        if isinstance(value, Tensor) and value.requires_grad:
            warn(
                "The function depends on tensors that require gradients beside x and l. An "
                "implicit derivative is taken in l only: give them as leaves of l, or detach them."
            )

    # -- Systems -----------------------------------------------------------------------------------

    def solve_system(
        self, spaces: Spaces, x: Tensor, l: Tensor, b: Tensor, *, transposed: bool, order: int
    ) -> Tensor:
        """y with J y = b or J' y = b, from the last such y."""
        J = self.equation.jacobian(spaces, x, l)
        key = (transposed, order)
        start = self._adjoints.get(key)
        start = start if start is not None and start.shape == b.shape else None
        y = self.system.solve(J.T if transposed else J, b, start, self.system.rtol)
        if self._keeps:
            self._adjoints[key] = y.x.clone()
        if order == 0:
            self._report(y.residual_norm, y.status, y.products)
            if self._solve is not None and b.ndim == 1:
                self._warn_of_other_points(spaces.x, x, b, y.x)
            if self._estimates and b.ndim == 1:
                self._estimate(spaces, x, l, b, y.x)
        elif self.report is not None:
            self.report = replace(self.report, products=self.report.products + y.products)
        return y.x

    def _warn_of_other_points(self, space: Space, x: Tensor, g: Tensor, s: Tensor) -> None:
        """|F(x)| |s| / |g| is about how far x is from a solution, as J' s = g."""
        assert self.report is not None
        far, size = self.report.residual * space.norm(s), space.norm(g)
        if far > _FAR * size * space.norm(x):
            warn(
                f"x of solve= is no solution: |F(x, l)| = {self.report.residual:.3g}, about "
                f"{far / size:.3g} from one, with |x| = {space.norm(x):.3g}. The derivative is "
                "that of a solution: solve further, or look at report.residual."
            )

    def _report(self, residual: float, status: Status, products: int) -> None:
        before = ImplicitReport(float("nan")) if self.report is None else self.report
        self.report = replace(
            before,
            adjoint_residual=residual,
            adjoint_status=status,
            adjoint_products=products,
            products=before.products + products,
        )

    def _estimate(self, spaces: Spaces, x: Tensor, l: Tensor, g: Tensor, s: Tensor) -> None:
        errors = estimated_errors(self.equation, self.system, spaces, x, l, s, lambda _: g)
        assert self.report is not None
        self.report = replace(
            self.report,
            x_error=errors.x,
            gradient_error=errors.gradient,
            products=self.report.products + errors.products,
        )


@dataclass(frozen=True)
class Call:
    """An implicit function at parameters of one form, as `implicit_root` sees it."""

    function: ImplicitFunction
    spaces: Spaces

    @property
    def equation(self) -> Equation:
        """F."""
        return self.function.equation

    def find(self, l: Tensor) -> Tensor:
        """x with F(x, l) = 0."""
        return self.function.find(self.spaces, l)

    def solve_system(
        self, x: Tensor, l: Tensor, b: Tensor, *, transposed: bool, order: int
    ) -> Tensor:
        """y with J y = b or J' y = b."""
        return self.function.solve_system(self.spaces, x, l, b, transposed=transposed, order=order)


@dataclass(frozen=True)
class Errors:
    """About how far x and a gradient are from those of the exact solution."""

    x: float
    gradient: float
    products: int


def estimated_errors(
    equation: Equation,
    system: AdjointSystem,
    spaces: Spaces,
    x: Tensor,
    l: Tensor,
    s: Tensor,
    cotangent: Callable[[Tensor], Tensor],
    explicit: Callable[[Tensor], Tensor] | None = None,
) -> Errors:
    """The change of x and of the gradient when x and the adjoint s are improved by a step each.

    Both steps are solved for loosely: the errors that they leave are a tenth of the estimate.
    """
    residual = equation.residual_at(spaces, x, l)
    J = equation.jacobian(spaces, x, l)
    step = system.solve(J, -residual, None, _LOOSE_RTOL)
    better_x = x + step.x
    better_J = equation.jacobian(spaces, better_x, l).T
    rest = cotangent(better_x) - better_J._matvec(s)
    change = system.solve(better_J, rest, None, _LOOSE_RTOL)
    new = equation.pulled_back(spaces, better_x, l, s + change.x)
    difference = equation.pulled_back(spaces, x, l, s) - new
    if explicit is not None:
        difference = difference + explicit(better_x) - explicit(x)
    return Errors(
        spaces.x.norm(step.x),
        spaces.l.norm(difference),
        step.products + change.products + 1,
    )


def refused(status: Status) -> OperatorError:
    """The error for a search that found no solution."""
    return OperatorError(
        expected="a solution x of the inner problem",
        got=f"{status.name}. {status.value}",
        remedy="Start elsewhere with x0, add a penalty, or give solve=, a function (x0, l) -> x.",
    )
