# SPDX-License-Identifier: Apache-2.0
"""The preconditioner of a run of `HessianFree`: chosen, refreshed, restored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hesse.boundary import warn
from hesse.errors import HesseError
from hesse.operators.algebra import LinearOperator
from hesse.optimize.current_point import CurrentPoint
from hesse.optimize.hessian_free_state import ParameterState
from hesse.optimize.kronecker_preconditioner import KroneckerPreconditioner
from hesse.optimize.point import Objective, Point
from hesse.optimize.preconditioners import (
    NystromPreconditioner,
    Preconditioner,
    StructuredPreconditioner,
)
from hesse.ranks import is_unsuitable
from hesse.risk.risk import Risk
from hesse.vectors.space import Space

Damped = Callable[[float], LinearOperator]
"""lambda -> an approximation of the inverse of the curvature + lambda I."""
Matrix = Callable[[Point], LinearOperator]
"""Makes the curvature at a point."""

_LONGEST_MEMORY = 0.8
"""The largest weight of past factors, whose average then reaches back five steps."""


class RunPreconditioner:
    """The preconditioner of all steps of a run.

    Args:
        wanted: a name, or a factory.
        space: of the parameters.
        parts: the state of the run.
        of_closures: whether the risks are closures.
    """

    def __init__(
        self, wanted: Any, space: Space, parts: ParameterState, *, of_closures: bool
    ) -> None:
        self._wanted, self._space, self._parts = wanted, space, parts
        self._of_closures = of_closures
        self._has_none = wanted == "none"
        self._kronecker: KroneckerPreconditioner | None = None
        self._other: Preconditioner | None = None
        if wanted == "nystrom":
            self._other = NystromPreconditioner(space)
        elif wanted not in ("ekfac", "kfac", "none"):
            self._other = StructuredPreconditioner(space, None if wanted == "diagonal" else wanted)

    def is_due(self, group: Mapping[str, Any]) -> bool:
        """Whether this step computes it again."""
        never = self._other is not None and self._parts.vector("refreshed_at") is None
        return group["steps"] % group["refresh_every"] == 0 or never

    def products_due(self, group: Mapping[str, Any]) -> int:
        """The products that this step takes for it."""
        return self._other.products if self._other is not None and self.is_due(group) else 0

    def at(
        self,
        risk: Risk,
        point: Point,
        matrix: Matrix | None,
        group: Mapping[str, Any],
        current: CurrentPoint,
    ) -> Damped | None:
        """The preconditioner for a step from a point.

        Args:
            risk: of this step.
            point: where it begins.
            matrix: makes the curvature at a point; None if it is the point's own.
            group: the options.
            current: makes points.
        """
        if self._has_none:
            return None
        if self._other is None:
            return self._factors_at(risk, point, group)
        steps, every = group["steps"], group["refresh_every"]
        if self.is_due(group):
            self._make(self._other, risk, point, matrix, group["seed"] + steps)
        elif self._other.is_empty:  # the run was resumed
            x = self._parts.vector("refreshed_at")
            assert x is not None
            there = Objective(current.operator(risk, x)).start(x)
            self._make(self._other, risk, there, matrix, group["seed"] + steps - steps % every)
        return self._other

    def _make(
        self, made: Preconditioner, risk: Risk, point: Point, matrix: Matrix | None, seed: int
    ) -> None:
        def curvature() -> LinearOperator:
            return point.curvature if matrix is None else point.counted(matrix(point))

        made.refresh(risk, self._space.unflatten(point.x), curvature, seed)

    def _factors_at(self, risk: Risk, point: Point, group: Mapping[str, Any]) -> Damped | None:
        steps, every = group["steps"], group["refresh_every"]
        tree = self._space.unflatten(point.x)
        kronecker = self._kronecker or self._new_kronecker(risk)
        try:
            if steps % every == 0 or kronecker.is_empty:
                past = min(1 - 1 / (steps // every + 1), _LONGEST_MEMORY)
                kronecker.refresh(risk, tree, group["seed"] + steps, past)
            else:
                kronecker.ready(tree)
        except HesseError as error:
            if not is_unsuitable(error):
                raise
            warn(f"no preconditioner: it needs {error.expected}, but there is {error.got}")
            self._kronecker, self._has_none = None, True
            return None
        self._kronecker = kronecker
        return kronecker

    def _new_kronecker(self, risk: Risk) -> KroneckerPreconditioner:
        kronecker = KroneckerPreconditioner(
            risk,
            self._space,
            rotated=self._wanted == "ekfac",
            of_closures=self._of_closures,
        )
        kronecker.load(self._parts.factors())
        return kronecker

    # -- State -------------------------------------------------------------------------------------

    @property
    def state(self) -> Any:
        """To be set again after a step that failed."""
        return None if self._kronecker is None else self._kronecker.state

    @state.setter
    def state(self, state: Any) -> None:
        if self._kronecker is None:
            return
        if state is None:  # it was made in the step that failed
            self._kronecker.load(self._parts.factors())
        else:
            self._kronecker.state = state

    def store(self, group: Mapping[str, Any], point: Point) -> None:
        """Write what a resumed run needs to the state, before the steps are counted."""
        if self._kronecker is not None:
            self._parts.store_factors(self._kronecker.stored())
        if self._other is not None and self.is_due(group) and group["refresh_every"] > 1:
            self._parts.store_vector("refreshed_at", point.x)

    def forget(self) -> None:
        """Restore it from the state."""
        self._kronecker = None
        if self._other is not None:
            self._other.forget()
