# SPDX-License-Identifier: Apache-2.0
"""Quasi-Newton steps by the limited-memory BFGS matrix of the last steps."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from hesse.krylov.preconditioners.quasi_newton import LimitedMemoryBFGS, curves_upwards
from hesse.operators.algebra import LinearOperator
from hesse.optimize.point import Point
from hesse.optimize.proposal import Candidate, LoopDescent, Proposal
from hesse.optimize.truncated_newton import along_gradient, shortened


@dataclass
class QuasiNewtonState:
    """The pairs, latest last, and the point of the last proposal."""

    S: list[Tensor] = field(default_factory=list)
    Y: list[Tensor] = field(default_factory=list)
    x: Tensor | None = None
    gradient: Tensor | None = None


class QuasiNewton(LoopDescent):
    """-M g for the limited-memory BFGS matrix M.

    Args:
        memory: pairs that are kept.
        preconditioner: the first M.
    """

    def __init__(self, memory: int, preconditioner: LinearOperator | None = None) -> None:
        self.state = QuasiNewtonState()
        self._memory, self._preconditioner = memory, preconditioner

    def propose(self, point: Point, scalar: float) -> Proposal:
        """A step from `point`."""
        self.learn(point)
        state, space, g = self.state, point.space, point.gradient
        if self.along_gradient:
            return Proposal(along_gradient(point))
        if state.S:
            M = LimitedMemoryBFGS(space, state.S, state.Y, self._preconditioner)
        elif self._preconditioner is not None:
            M = self._preconditioner
        else:
            t = min(1.0, max(1.0, space.norm(point.x)) / point.gradient_norm)
            return Proposal(Candidate(-t * g, -t * point.gradient_norm * point.gradient_norm))
        step = -M._matvec(g)
        slope = space.inner(g, step)
        if not slope < 0.0:
            return Proposal(along_gradient(point))
        return Proposal(shortened(point, Candidate(step, 0.5 * slope)))

    def rejected(self) -> None:
        """The step led nowhere: forget the pairs."""
        self.state.S, self.state.Y = [], []

    def moved(self) -> None:
        """The next point is no neighbour."""
        self.state.x = self.state.gradient = None

    def learn(self, point: Point) -> None:
        """The pair of the step to this point, if it shows positive curvature."""
        state, before = self.state, (self.state.x, self.state.gradient)
        state.x, state.gradient = point.x, point.gradient
        if before[0] is None or before[1] is None:
            return
        s, y = point.x - before[0], point.gradient - before[1]
        if curves_upwards(point.space, s, y):
            state.S = [*state.S, s][-self._memory :]
            state.Y = [*state.Y, y][-self._memory :]
