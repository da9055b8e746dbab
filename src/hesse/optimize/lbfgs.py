# SPDX-License-Identifier: Apache-2.0
"""`LBFGS`: the quasi-Newton method that takes no products, to compare with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from hesse.errors import check_count
from hesse.krylov.preconditioners.quasi_newton import LimitedMemoryBFGS, curves_upwards
from hesse.operators.algebra import LinearOperator
from hesse.optimize.method import MinimizeMethod, Setting
from hesse.optimize.point import Point
from hesse.optimize.proposal import Candidate, LoopDescent, LoopSearch, Proposal
from hesse.optimize.truncated_newton import along_gradient, shortened
from hesse.optimize.wolfe import StrongWolfeSearch


@dataclass(frozen=True, repr=False)
class LBFGS(MinimizeMethod):
    r"""Limited-memory BFGS: curvature from the last steps and the change of the gradient.

    $$ p_k = -M_k g_k, \qquad M_{k+1} = (I - \rho_k s_k y_k^T)\, M_k\, (I - \rho_k y_k s_k^T)
       + \rho_k s_k s_k^T $$

    with s_k = x_{k+1} - x_k, y_k = g_{k+1} - g_k, and a strong Wolfe line search. A preconditioner
    takes the place of the first M. It is the baseline: where gradients are cheap and the problem is
    well conditioned, nothing is faster; where it is not, it takes many more of them.

    Args:
        memory: pairs (s, y) that are kept.

    Cost: one value and one gradient for most steps. No product, but for the certificate at the end.
        Memory: 2 `memory` vectors and about eight more.

    References: Nocedal 1980, doi:10.1090/S0025-5718-1980-0572855-7; Liu & Nocedal 1989,
        doi:10.1007/BF01589116.

    >>> import hesse, torch
    >>> x = torch.zeros(2, dtype=torch.float64)
    >>> hesse.minimize(lambda x: (x - 1).square().sum(), x, LBFGS()).x
    tensor([1., 1.], dtype=torch.float64)
    """

    name: ClassVar[str] = "lbfgs"
    memory: int = 10

    def _check(self) -> None:
        self._set(memory=check_count("memory", self.memory, 1))

    def compose(self, setting: Setting) -> tuple[LoopDescent, LoopSearch]:
        return QuasiNewton(self.memory, setting.preconditioner), StrongWolfeSearch()


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
