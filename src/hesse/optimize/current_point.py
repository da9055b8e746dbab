# SPDX-License-Identifier: Apache-2.0
"""The point of an optimiser of a model: its risk at the parameters as they are now."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hesse.curvature.operator import CurvatureOperator
from hesse.engine.cost_model import deterministic
from hesse.errors import NonFiniteError
from hesse.optimize.fixed_mode import in_fixed_mode
from hesse.optimize.hessian_free_state import shapes_of
from hesse.optimize.point import Counts, Objective, Point
from hesse.risk.risk import Risk
from hesse.vectors.space import Space

# A step that was taken back multiplies the damping by this.
MORE_DAMPING = 4.0
# The modes that "auto" takes one of.
MODES = ["traced-split", "retained-graph"]


@dataclass(frozen=True)
class Given:
    """What a step is given."""

    risk: Risk
    value: float | None = None
    """At the parameters as they are, if it is known."""
    is_left: bool = False
    """Whether the next step is of another risk, so that the gradient where this one leads to is not
    needed."""


class CurrentPoint:
    """The objective and the point; those of the last step if nothing has changed since.

    Args:
        make: `ggn_operator` or `hessian_operator`.
        space: of the parameters.
        counts: where evaluations are counted.
        mode: in which products are taken; "auto" becomes the first of MODES that works.
    """

    def __init__(
        self, make: Callable[..., CurvatureOperator], space: Space, counts: Counts, mode: str
    ) -> None:
        self._make, self._space, self._counts = make, space, counts
        self.mode = mode
        self._is_auto = mode == "auto"
        self._traced = set[Hashable]()
        self._known: tuple[Risk, Objective, Point] | None = None

    def beginning(
        self, given: Given, x: Tensor, last: Tensor | None
    ) -> tuple[Objective, Point, bool]:
        """The objective, the point where a step begins, and whether the last step is taken back.

        It is, where it led to a point whose gradient is not finite.

        Args:
            given: of this step.
            x: the parameters.
            last: the last step, if it may be taken back.
        """
        objective, point = self.of(given, x)
        try:
            _check_finite(point)
        except NonFiniteError:  # on all ranks alike
            if last is None:
                raise
        else:
            return objective, point, False
        objective, point = self.of(replace(given, value=None), x - last)
        _check_finite(point)
        return objective, point, True

    def of(self, given: Given, x: Tensor) -> tuple[Objective, Point]:
        """The objective and the point at x."""
        risk, value = given.risk, given.value
        if self._known is not None:
            last_risk, objective, point = self._known
            is_same = last_risk is risk and (value is None or value == point.value)
            if is_same and not self._anywhere(lambda: bool((point.x != x).any())):
                return objective, point
        objective = Objective(self.operator(risk, x), self._counts, is_left=given.is_left)
        return objective, objective.start(x)

    def keep(self, given: Given, objective: Objective, point: Point) -> None:
        """The point after a step, if the next one is of the same risk."""
        self._known = None if given.is_left else (given.risk, objective, point)

    def forget(self) -> None:
        """Evaluate the risk again when it is next asked for."""
        self._known = None

    def falls_back(self) -> bool:
        """Whether there is another mode to go on in, after the programs were found wrong."""
        if not self._is_auto or self.mode == MODES[-1]:
            return False
        self.mode, self._known = MODES[-1], None
        return True

    def operator(self, risk: Risk, x: Tensor) -> CurvatureOperator:
        """The curvature of the model at x, in the mode of all steps."""
        tree = self._space.unflatten(x)
        return self.in_mode(lambda mode: self._make(risk, tree, mode=mode), risk)

    def in_mode(
        self, make: Callable[[str], CurvatureOperator], risk: Risk, which: str = ""
    ) -> CurvatureOperator:
        """An operator in the mode of all steps: mode -> it; `which` tells it from others."""
        shapes: set[Hashable] = set()

        def is_new() -> bool:
            shapes.add((which, shapes_of(risk)))
            return not shapes <= self._traced

        if self._anywhere(is_new):
            modes = MODES if self.mode == "auto" else [self.mode]
            with suppress(NonFiniteError):  # of the risk, which the step tells better
                self.mode = in_fixed_mode(make, modes)[1]
                self._traced |= shapes
        with deterministic():
            return make(self.mode)

    def _anywhere(self, is_so: Callable[[], bool]) -> bool:
        """Whether something is so in this process, or in one that takes the same steps.

        Where it cannot be told in one of them, as by a loader that fails, all raise an error.
        """
        ranks = self._space.ranks
        if ranks is None:
            return is_so()
        like = torch.empty((), device=self._space.device)
        return bool(ranks.sum_of(lambda: like.new_tensor(is_so()), like) > 0.0)


def _check_finite(point: Point) -> None:
    """Raise where a step cannot begin."""
    if not point.is_finite:
        raise NonFiniteError(
            expected="a finite risk and gradient at the current parameters",
            got="NaN or Inf",
            remedy="Check the data and the parameters; the model has not been changed.",
        )
