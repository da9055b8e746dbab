# SPDX-License-Identifier: Apache-2.0
"""`Enriched`: L-BFGS as long as it is fast, and Newton's steps within a trust radius where not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from hesse.errors import check_count
from hesse.krylov.secular import within_ball
from hesse.optimize.krylov_descent import KrylovDescent, KrylovDescentState
from hesse.optimize.lbfgs import quasi_newton_descent
from hesse.optimize.method import IterativeMethod, Setting
from hesse.optimize.point import Counts, Objective, Point
from hesse.optimize.projected_descent import ProjectedDescent, ProjectedState
from hesse.optimize.proposal import LoopDescent, LoopSearch, Proposal
from hesse.optimize.quasi_newton import QuasiNewton, QuasiNewtonState
from hesse.optimize.trust_radius import RadiusState, TrustRadius
from hesse.optimize.wolfe import StrongWolfeSearch

# L-BFGS is judged after so many steps; it is fast if the gradient has become this much smaller.
_WINDOW, _FAST = 10, 0.2
# Newton's method is first tried after so many of them, and judged after so many steps of its own.
_WAIT, _TRIAL = 80, 3
# A step of it takes at most this many products, or this part of what all has cost so far.
_LEAST_PRODUCTS, _PART = 10, 0.25
# It is near a minimum if its steps have made the gradient this much smaller.
_NEAR = 0.5
# What is counted in gradients: a value, the gradient after it, a product.
_VALUE, _GRADIENT, _PRODUCT = 1 / 3, 2 / 3, 2.0


Newton = KrylovDescent | ProjectedDescent


@dataclass(frozen=True, repr=False)
class Enriched(IterativeMethod):
    r"""L-BFGS as long as it is fast, and Newton's steps within a trust radius where it is not.

    $$ p_k = -M_k g_k \quad\text{or}\quad
       p_k = \arg\min_{s \in \mathcal{K}_j(H, g)} g^T s + \tfrac12 s^T H s, \;
       \lVert s \rVert \le \Delta $$

    A step of L-BFGS costs a gradient, one of Newton's as many products as its Krylov space has
    dimensions. Where a function is well conditioned the first reach the minimum before the others
    have paid for a few steps; where it is not, they crawl. Every ten steps of L-BFGS are judged. If
    they have not made the gradient five times smaller, and eighty have been taken, three steps of
    `TrustKrylov` follow. The method goes on with those that gained more for what they cost, in
    log |g| near a minimum, else in f; if Newton's lose, it is twice as long until they are tried
    again. Where L-BFGS finds no lower point, Newton's method goes on. No step takes more products
    than a quarter of what all has cost so far, in gradients, so that a trial that fails is cheap.

    Within bounds on x the steps are those of L-BFGS-B, and in place of `TrustKrylov` those of
    `TrustCG`. No preconditioner can be given with bounds.

    Args:
        max_inner_iterations: products of one step at most.
        memory: pairs of L-BFGS that are kept.

    Cost: that of the two. The decisions count evaluations, not seconds. Memory: that of
        `TrustKrylov` and 2 `memory` vectors; within bounds 4 `memory` vectors and fifteen more.

    References: Morales & Nocedal 2002, Computational Optimization and Applications 21, 143-154
        (L-BFGS and Newton-CG in turns).

    >>> import hesse, torch
    >>> x = torch.zeros(2, dtype=torch.float64)
    >>> hesse.minimize(lambda x: (x - 1).square().sum(), x, Enriched()).x
    tensor([1., 1.], dtype=torch.float64)
    """

    name: ClassVar[str] = "enriched"
    memory: int = 10

    def _check(self) -> None:
        super()._check()
        self._set(memory=check_count("memory", self.memory, 1))

    def compose(self, setting: Setting) -> tuple[LoopDescent, LoopSearch]:
        quasi, most, box = (
            quasi_newton_descent(self.memory, setting),
            self.max_inner_iterations,
            setting.box,
        )
        newton: Newton
        if box is None:
            newton = KrylovDescent(setting, within_ball, most, is_bounded=True)
        else:
            newton = ProjectedDescent(setting, box, most)
        descent = Alternating(quasi, newton, most)
        return descent, AlternatingSearch(descent, TrustRadius(setting.preconditioner))

    @property
    def takes_bounds(self) -> bool:
        """Yes."""
        return True


@dataclass
class AlternatingState(QuasiNewtonState, KrylovDescentState, ProjectedState):
    """The states of the descents, which of them is next, and how each has done."""

    is_quasi: bool = True
    steps: int = 0
    """Of this kind, since it was chosen or last judged."""
    wait: int = _WAIT
    """Steps of L-BFGS before Newton's are tried."""
    waited: int = 0
    allowed: int = _LEAST_PRODUCTS
    """Products of the next step of Newton's."""
    before: float = math.nan
    """|g| when the steps began; beside it f, and the cost so far."""
    value: float = math.nan
    cost: float = 0.0
    digits: float = -math.inf
    """What the last steps of L-BFGS gained in log |g| for a gradient; beside it in f."""
    fall: float = -math.inf


class Alternating(LoopDescent):
    """Proposals of L-BFGS or of Newton's method.

    Args:
        quasi: L-BFGS.
        newton: Newton's method within a radius.
        most: products of one step.
    """

    def __init__(self, quasi: QuasiNewton, newton: Newton, most: int) -> None:
        self.state = AlternatingState()
        self._quasi, self._newton, self._most = quasi, newton, most

    @property
    def _next(self) -> LoopDescent:
        descent = self._quasi if self.state.is_quasi else self._newton
        descent.state, descent.gradient_tolerance = self.state, self.gradient_tolerance
        self._newton.most = min(self._most, self.state.allowed)
        return descent

    def propose(self, point: Point, scalar: float) -> Proposal:
        """A step from `point`."""
        if not self.state.is_quasi:
            self._quasi.state = self.state
            self._quasi.learn(point)
        return self._next.propose(point, scalar)

    def first_curvature(self, point: Point) -> float:
        """d'Hd along the (preconditioned) gradient."""
        self._newton.state = self.state
        return self._newton.first_curvature(point)

    def rejected(self) -> None:
        """The search rejected the last proposal."""
        self._next.rejected()

    def moved(self) -> None:
        """The next point is no neighbour of the last one."""
        self._newton.state = self._quasi.state = self.state
        self._quasi.moved()
        self._newton.moved()
        self.state.before = math.nan


class AlternatingSearch(LoopSearch):
    """A Wolfe search for L-BFGS, a trust radius for Newton, and the choice of what comes next."""

    def __init__(self, descent: Alternating, radius: TrustRadius) -> None:
        self.state = RadiusState()
        self._descent, self._wolfe, self._radius = descent, StrongWolfeSearch(), radius

    @property
    def scalar(self) -> float:
        """The radius; infinite for a step of L-BFGS."""
        return math.inf if self._descent.state.is_quasi else self._trust.scalar

    @property
    def _trust(self) -> TrustRadius:
        self._radius.state = self.state
        return self._radius

    def moved(self, point: Point, length: float, descent: LoopDescent) -> None:
        """Steps from there may be as long as the way to it."""
        self._trust.moved(point, length, descent)

    def is_short(self, length: float) -> bool:
        """Whether the radius is not above this length."""
        return self._descent.state.is_quasi or self._trust.is_short(length)

    def judge(self, objective: Objective, point: Point, proposal: Proposal) -> Point | None:
        """The accepted point, or None; and whose turn is next."""
        state = self._descent.state
        if math.isnan(state.before):
            _begin(state, point, objective.counts)
        if state.is_quasi:
            accepted = self._wolfe.judge(objective, point, proposal)
            if accepted is None or _is_slow(state, accepted, objective.counts):
                self._to_newton(point, accepted or point, objective.counts)
            return accepted
        accepted = self._trust.judge(objective, point, proposal)
        state.allowed = _allowed(objective.counts)
        if accepted is not None and _has_lost(state, accepted, objective.counts):
            state.is_quasi = True
        return accepted

    def _to_newton(self, before: Point, point: Point, counts: Counts) -> None:
        """Newton's turn; its radius is at least as long as the last step."""
        state = self._descent.state
        state.is_quasi, state.kept = False, 0
        state.allowed = _allowed(counts)
        if self.state.radius == 0.0:
            self._trust.begin(point, self._descent)
        length = point.space.norm(point.x - before.x)
        self._trust.moved(point, length, self._descent)
        _begin(state, point, counts)


def _cost(counts: Counts) -> float:
    return _VALUE * counts.nfev + _GRADIENT * counts.njev + _PRODUCT * counts.nhev


def _allowed(counts: Counts) -> int:
    """Products of a step that may fail."""
    return max(_LEAST_PRODUCTS, int(_PART * _cost(counts)))


def _begin(state: AlternatingState, point: Point, counts: Counts) -> None:
    """Steps are judged from here on."""
    state.before, state.value, state.cost = point.gradient_norm, point.value, _cost(counts)
    state.steps = 0


def _gains(state: AlternatingState, point: Point, counts: Counts) -> tuple[float, float]:
    """What the steps have gained in log |g| and in f, for a gradient of cost."""
    cost = max(_cost(counts) - state.cost, 1.0)
    norm = max(point.gradient_norm, 1e-300)
    return math.log(state.before / norm) / cost, (state.value - point.value) / cost


def _is_slow(state: AlternatingState, point: Point, counts: Counts) -> bool:
    """Whether it is time to try Newton's steps."""
    state.steps += 1
    state.waited += 1
    if state.steps < _WINDOW:
        return False
    is_fast = point.gradient_norm <= _FAST * state.before
    state.digits, state.fall = _gains(state, point, counts)
    if is_fast or state.waited < state.wait:
        _begin(state, point, counts)
        return False
    state.waited = 0
    return True


def _has_lost(state: AlternatingState, point: Point, counts: Counts) -> bool:
    """Whether L-BFGS gained more for its cost than Newton's last steps."""
    state.steps += 1
    if state.steps < _TRIAL:
        return False
    digits, fall = _gains(state, point, counts)
    is_near = point.gradient_norm <= _NEAR * state.before
    _begin(state, point, counts)
    if digits > state.digits if is_near else fall > state.fall:
        return False
    state.wait *= 2
    return True
