# SPDX-License-Identifier: Apache-2.0
"""Steps within bounds and a trust radius: the projected Newton method of TRON.

First the generalised Cauchy point, along the projection of the negative gradient. Then CG on the
variables that are inside there, and a projected search along its step, which may bring more
variables to their bounds, so that many can change at once; and again on the smaller face.

References: Lin & Moré 1999, doi:10.1137/S1052623498345075; Conn, Gould & Toint 1988,
doi:10.1137/0725029 (the Cauchy point).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from hesse.errors import Status
from hesse.krylov.cg import CG
from hesse.krylov.system import System
from hesse.operators.algebra import LinearOperator
from hesse.optimize.box import Box, Masked
from hesse.optimize.forcing import ForcingState
from hesse.optimize.method import Setting
from hesse.optimize.point import Point
from hesse.optimize.proposal import Candidate, LoopDescent, Proposal
from hesse.progress import Run

# Enough decrease of the model, relative to its slope; and what a trial length is divided by.
_ENOUGH, _FACTOR = 1e-2, 10.0
# Trial lengths of the Cauchy point; faces, and lengths along each, of the projected search.
_LENGTHS, _FACES, _SEARCHES = 20, 20, 10


@dataclass
class ProjectedState(ForcingState):
    """The last forcing term, and the last length along the projected gradient."""

    length: float = math.nan


@dataclass
class _Step:
    """A step s with H s and the model g's + s'Hs/2."""

    s: Tensor
    Hs: Tensor
    value: float


@dataclass
class _Model:
    """The quadratic model at a point, and the products that were taken with it."""

    point: Point
    box: Box
    run: Run
    H: LinearOperator
    products: int = 0

    @property
    def may_go_on(self) -> bool:
        """Whether two more products are within the limits: one of CG, and one to see its step."""
        return self.run.goes_on(self) and self.run.left(self.products) >= 2

    def at(self, s: Tensor) -> _Step:
        """The model at a step. One product."""
        Hs = self.H._matvec(s)
        self.products += 1
        slope, curvature = self.point.space.inner_pairs((self.point.gradient, s), (s, Hs))
        return _Step(s, Hs, slope + 0.5 * curvature)

    def moved(self, s: Tensor, p: Tensor, t: float) -> Tensor:
        """The step to the projection of x + s + t p."""
        x = self.point.x
        return self.box.project(x + s + t * p) - x


class ProjectedDescent(LoopDescent):
    """The step of TRON.

    Args:
        setting: of the minimisation.
        box: the bounds.
        most: products of one step.
    """

    def __init__(self, setting: Setting, box: Box, most: int) -> None:
        self.state = ProjectedState()
        self._setting, self._box, self.most = setting, box, most

    def propose(self, point: Point, scalar: float) -> Proposal:
        """A step from `point` within about the radius `scalar`."""
        model = _Model(point, self._box, self._setting.limits(), point.curvature)
        step = self._cauchy(model, scalar)
        if step is None:
            return Proposal(Candidate(point.space.zeros(), 0.0))
        rtol = self.state.tolerance(point.gradient_norm, self.gradient_tolerance)
        on_boundary = point.space.norm(step.s) > 0.9 * scalar
        for _ in range(_FACES):
            found = self._on_face(model, step, rtol, scalar)
            if found is None:
                break
            step, status = found
            if status in (Status.BOUNDARY, Status.NEGATIVE_CURVATURE):
                on_boundary = True
                break
        on_boundary = on_boundary or point.space.norm(step.s) > 0.9 * scalar
        return Proposal(Candidate(step.s, step.value), on_boundary=on_boundary)

    def _cauchy(self, model: _Model, radius: float) -> _Step | None:
        """A step to the projection of x - t g with enough decrease; None if none was found.

        The length t is ten times as large as long as that works, or a tenth until it does.
        """
        t = self.state.length
        t = radius / model.point.gradient_norm if math.isnan(t) else t
        best = self._along_gradient(model, t, radius, 0.0)
        grows = best is not None
        for _ in range(_LENGTHS):
            if not grows and best is not None:
                break
            t = t * _FACTOR if grows else t / _FACTOR
            least = 0.0 if best is None else model.point.space.norm(best.s)
            step = self._along_gradient(model, t, radius, least)
            if grows and step is None:
                t /= _FACTOR
                break
            best = step or best
        self.state.length = t
        return best

    def _along_gradient(self, model: _Model, t: float, radius: float, least: float) -> _Step | None:
        """The step for one t, if it is longer than `least`, within the radius, and low enough."""
        space, g = model.point.space, model.point.gradient
        s = model.moved(space.zeros(), g, -t)
        if not least < space.norm(s) <= radius:
            return None
        if not (model.run.left(model.products) >= 1 and model.run.goes_on(model)):
            return None
        step = model.at(s)
        return step if step.value <= _ENOUGH * space.inner(g, s) else None

    def _on_face(
        self, model: _Model, step: _Step, rtol: float, radius: float
    ) -> tuple[_Step, Status] | None:
        """CG on the variables inside, and a projected search; None where nothing is left to do."""
        point, space = model.point, model.point.space
        mask = self._box.inside(point.x + step.s)
        residual = -(mask * (point.gradient + step.Hs))
        enough = rtol * space.norm(mask * point.gradient)
        if space.norm(residual) <= enough or model.products >= self.most or not model.may_go_on:
            return None
        run = model.run.rest(model.products)
        if run.max_products < math.inf:
            run.max_products -= 1  # to see the step
        system = System(
            Masked(model.H, mask),
            residual,
            preconditioner=self._preconditioner(mask),
            atol=enough,
            rtol=0.0,
            max_iterations=self.most - model.products,
            run=run,
        )
        solution = CG(radius=radius, verify=False).solve_system(system)
        model.products += solution.products
        if solution.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        moved = self._search(model, step, solution.x)
        return None if moved is None else (moved, solution.status)

    def _preconditioner(self, mask: Tensor) -> LinearOperator | None:
        M = self._setting.preconditioner
        return None if M is None else Masked(M, mask)

    def _search(self, model: _Model, step: _Step, w: Tensor) -> _Step | None:
        """The first of the lengths 1, 1/2, ... with enough decrease along the projection of w.

        The model falls all the way along w, so that the way to the first bound is one at last.
        """
        point, space = model.point, model.point.space
        slope = point.gradient + step.Hs
        first = min(self._box.first_bound(point.x + step.s, w, space), 1.0)
        t = 1.0
        for trial in range(_SEARCHES):
            if not (model.run.left(model.products) >= 1 and model.run.goes_on(model)):
                return None
            t = first if t < first or trial == _SEARCHES - 1 else t
            moved = model.at(model.moved(step.s, w, t))
            if moved.value <= step.value + _ENOUGH * space.inner(slope, moved.s - step.s):
                return moved if moved.value < step.value else None
            if t <= first:
                return None
            t *= 0.5
        return None
