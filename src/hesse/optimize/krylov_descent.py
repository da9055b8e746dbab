# SPDX-License-Identifier: Apache-2.0
"""Steps to the minimum of the model on a Krylov space, which serves again after a rejected step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hesse.errors import Status
from hesse.krylov.cg import CG
from hesse.krylov.krylov_model import KrylovModel, KrylovStep, Subproblem
from hesse.optimize.forcing import ForcingState
from hesse.optimize.method import Setting
from hesse.optimize.newton_system import newton_system
from hesse.optimize.point import Point, unit_for
from hesse.optimize.proposal import Candidate, LoopDescent, Proposal
from hesse.vectors.rows import empty_rows
from hesse.vectors.space import Space

# The entries that a basis may take, unless it has no more rows than the number that follows.
_ENTRIES, _LEAST_ROWS = 1 << 27, 30
# Few steps take more rows; they copy the first ones once.
_RESERVED = 512
# The small problem is solved after every product up to this size, then each time it has grown by
# a sixteenth.
_EACH = 32
# A step to the boundary needs no more accuracy: the radius is not right either.
_BOUNDARY_RTOL = 0.1


@dataclass
class KrylovDescentState(ForcingState):
    """The last forcing term, and the products of the basis that the next proposal uses again."""

    kept: int = 0


@dataclass
class _Products:
    products: int


class KrylovDescent(LoopDescent):
    """The minimum of g's + s'Hs/2 within a radius, or with a cubic term, on a Krylov space of g.

    The space grows until the residual is small. After a rejected step the basis serves again.

    Args:
        setting: of the minimisation.
        subproblem: of `hesse.krylov.secular`.
        most: products of one solve.
        is_bounded: whether the scalar is a radius; then, where the basis has no room for another
            vector and the step is inside, CG goes on from it.
    """

    def __init__(
        self, setting: Setting, subproblem: Subproblem, most: int, *, is_bounded: bool
    ) -> None:
        self.state = KrylovDescentState()
        self._setting, self._subproblem = setting, subproblem
        self.most, self._is_bounded = most, is_bounded
        self._model: KrylovModel | None = None
        self._memory: tuple[Tensor, ...] = ()
        """Of the bases: fresh memory takes longer to fill than a product to compute."""
        self._point: Point | None = None

    def propose(self, point: Point, scalar: float) -> Proposal:
        """A step from `point` for this radius or sigma."""
        unit = unit_for(point.gradient_norm)
        model = self._model_at(point)
        found = self._solve(model, scalar if self._is_bounded else unit * scalar, point)
        step = Candidate(model.step(found), found.value / unit, found.length)
        self.state.kept = 0
        if self._is_bounded and self._is_cut(model, found):
            step = self._continued(point, step, scalar)
        on_boundary = found.shift > 0.0 or found.length >= 0.99 * scalar
        return Proposal(step, on_boundary=self._is_bounded and on_boundary)

    def first_curvature(self, point: Point) -> float:
        """d'Hd along the (preconditioned) gradient; the product serves the first step too."""
        model = self._model_at(point)
        model.extend()
        self.state.kept = model.size
        return model.first_curvature / unit_for(point.gradient_norm)

    def rejected(self) -> None:
        """The next proposal is from the same point, and uses the basis again."""
        self.state.kept = 0 if self._model is None else self._model.size

    def moved(self) -> None:
        """The next proposal is from another point."""
        self.state.kept = 0
        self._release()

    def _model_at(self, point: Point) -> KrylovModel:
        """That of the last step, or a new one.

        A run that is resumed after a rejected step takes the products of its basis again, which
        are not counted twice.
        """
        if self._model is not None and self._point is point:
            return self._model
        rows = max(_LEAST_ROWS, _ENTRIES // max(point.space.max_size, 1))
        bases = 1 if self._setting.preconditioner is None else 2
        rows //= bases
        self._release()
        if not self._memory and point.space.device.type == "cpu":
            self._memory = _reserved(point.space, bases, min(rows, _RESERVED))
        system = newton_system(point, self._setting)
        model = KrylovModel(system, min(self.most, rows), self._memory)
        with point.uncounted():
            while model.size < self.state.kept and not model.is_full:
                model.extend()
        self._model, self._point = model, point
        return model

    def _release(self) -> None:
        """Leave the memory of the model to the next one."""
        if self._model is not None:
            self._memory, self._model = self._model.memory, None

    def _tolerance(self, point: Point) -> float:
        return self.state.tolerance(point.gradient_norm, self.gradient_tolerance)

    def _solve(self, model: KrylovModel, scalar: float, point: Point) -> KrylovStep:
        """Extend the space until the minimum on it is accurate enough."""
        rtol, run = self._tolerance(point), self._setting.limits()
        before = due = model.size
        if model.size == 0:
            model.extend()
        while True:
            is_last = model.is_full or not run.goes_on(_Products(model.size - before))
            if is_last or model.size >= due:
                found = model.minimise(self._subproblem, scalar)
                due = model.size + (1 if model.size < _EACH else model.size // 16)
                enough = max(rtol, _BOUNDARY_RTOL) if found.shift > 0.0 else rtol
                if is_last or found.residual_norm <= enough * model.slope_norm:
                    return found
            model.extend()

    def _is_cut(self, model: KrylovModel, found: KrylovStep) -> bool:
        """Whether the room for the basis ended an interior solve early."""
        is_inside = found.shift == 0.0 and self._setting.preconditioner is None
        return is_inside and model.is_full and not model.is_invariant and model.size < self.most

    def _continued(self, point: Point, start: Candidate, radius: float) -> Candidate:
        """CG from the step where the basis ended, within the radius."""
        rtol = self._tolerance(point)
        limit = self.most - (0 if self._model is None else self._model.size)
        system = newton_system(
            point, self._setting,
            x0=start.step, rtol=rtol, max_iterations=limit, run=self._setting.limits(),
        )  # fmt: skip
        solution = CG(radius=radius, verify=False).solve_system(system)
        if solution.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        predicted = solution.model_value / unit_for(point.gradient_norm)
        return Candidate(solution.x, predicted) if predicted < start.predicted else start


def _reserved(space: Space, bases: int, rows: int) -> tuple[Tensor, ...]:
    """Memory for so many rows, which the host takes page by page, as they are written."""
    count = min(rows, space.n) + 1
    return tuple(empty_rows(count, space.size, dtype=space.dtype) for _ in range(bases))
