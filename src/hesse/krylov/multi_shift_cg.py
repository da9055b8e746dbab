# SPDX-License-Identifier: Apache-2.0
"""Conjugate gradients for A + s I and several shifts s at the products of one of them.

A shift does not change the Krylov space of b, and the residuals of all systems are multiples
zeta_i r of that of the smallest shift, the seed. So x for every shift follows from the recurrence
of the seed; the larger the shift, the faster its factor zeta_i <= 1 falls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from hesse.errors import ArgumentError, Status
from hesse.krylov.block import BlockState
from hesse.krylov.method import Method
from hesse.krylov.solution import Solution
from hesse.krylov.system import System, after_step, curvatures, iterate, repeat, solution_of
from hesse.operators.algebra import LinearOperator


@dataclass
class MultiShiftState(BlockState):
    """The iteration after a step: the systems first, ..., first + active - 1 are being solved.

    The shifts ascend. r is the residual of the seed, system `first`; `ratio` the last factor of
    each zeta.
    """

    first: int = 0
    active: int = 0
    r: Tensor | None = None
    P: Tensor | None = None
    rr: float = 0.0
    zeta: Tensor = field(default_factory=lambda: torch.zeros(0))
    ratio: Tensor = field(default_factory=lambda: torch.zeros(0))
    alpha: float = 1.0
    beta: float = 0.0

    def recompute(self, system: System) -> None:
        """Replace the residuals of the recurrence by b - (A + s_i I) x_i. One product each."""
        self.residual = system.b[:, None] - system.A._matmat(self.x)
        self.products += self.x.shape[1]
        self.measure(system)


@dataclass(frozen=True, repr=False)
class MultiShiftCG(Method):
    r"""Conjugate gradients for (A + s_i I) x_i = b and several shifts s_i at the products of one.

    $$ r^{(i)} = \zeta^{(i)} r, \qquad \frac{\zeta^{(i)}_{k+1}}{\zeta^{(i)}_k} = \Bigl[ 1 +
       (s_i - s_1) \alpha_k + \frac{\alpha_k \beta_{k-1}}{\alpha_{k-1}}
       \Bigl( 1 - \frac{\zeta^{(i)}_k}{\zeta^{(i)}_{k-1}} \Bigr) \Bigr]^{-1} $$

    A + min(s) I must be positive definite. x has a column for each shift, (n, s), in their order.
    Converged when every |b - (A + s_i I) x_i| meets the tolerance. A system that is solved takes no
    further work; one whose recomputed residual is too large is then continued by itself. On
    p'(A + s I)p <= 0 for the smallest shift the status is NEGATIVE_CURVATURE.

    Args:
        shifts: s_1, ..., s_s in any order, a list or a tensor.

    Cost: one product an iteration, as many as for the smallest shift alone, and s to verify, as one
        block. None if b = 0. Vectors: 2 s + 3 between steps; 4 s + 1 at the end, to verify.

    Raises:
        HesseError: A not tagged symmetric; no finite shifts; an x0 or a preconditioner, under which
            the residuals would not be multiples of one another.

    References:
        Jegerlehner 1996, arXiv:hep-lat/9612014; Frommer & Maass 1999,
        doi:10.1137/S1064827596313310.

    >>> from hesse.krylov import solve
    >>> A = torch.diag(torch.tensor([1.0, 3.0]))
    >>> solution = solve(A, torch.ones(2), MultiShiftCG([1.0, 0.0]))
    >>> solution.x, solution.iterations, solution.products
    (tensor([[0.5000, 1.0000],
            [0.2500, 0.3333]]), 2, 4)
    """

    name: ClassVar[str] = "multi-shift-cg"
    shifts: Sequence[float] | Tensor

    @property
    def is_homogeneous(self) -> bool:
        """Whether no option is in the units of A, b or x, so that the system may be scaled."""
        return False

    def _check(self) -> None:
        self._set(shifts=_numbers(self.shifts))

    def _solve(self, system: System) -> Solution:
        system.check_symmetric()
        _check_start(system)
        system.run.reserved = len(self.shifts)  # the products that verify x
        shifts = torch.tensor(self.shifts, dtype=torch.float64)
        ascending, order = torch.sort(shifts, stable=True)
        A = Shifted(system.A, ascending)
        system = replace(system, A=A)
        state = _start(system, len(ascending))
        iterate(system, state, lambda: repeat(system, state, lambda: _step(A, state, system)))
        back = torch.argsort(order)
        norms = state.residual_norms[back]
        solution = solution_of(state, self.name, residual_norms=norms)
        return replace(solution, x=state.x[:, back.to(state.x.device)])


def _numbers(shifts: Any) -> tuple[float, ...]:
    """The shifts as numbers; raises unless they are some finite ones, in a list or a tensor."""
    try:
        values = tuple(float(s) for s in shifts)
    except (TypeError, ValueError, RuntimeError):
        values = ()
    if values and not isinstance(shifts, (str, bytes)) and all(map(math.isfinite, values)):
        return values
    raise ArgumentError(
        expected="a list of one or more finite shifts",
        got=repr(shifts),
        remedy="Give a list, [s] for a single shift.",
    )


class Shifted(LinearOperator):
    """A + s_i I for column i of a block: products with blocks of as many columns as shifts."""

    def __init__(self, A: LinearOperator, shifts: Tensor) -> None:
        super().__init__(A.domain, symmetric=True)
        self.A, self.shifts = A, shifts

    def of(self, i: int, v: Tensor) -> Tensor:
        """(A + s_i I) v."""
        return torch.add(self.A._matvec(v), v, alpha=float(self.shifts[i]))

    def _matvec(self, v: Tensor) -> Tensor:
        return self.of(0, v)

    def _matmat(self, block: Tensor) -> Tensor:
        return torch.addcmul(self.A._matmat(block), block, self.shifts.to(block))


def _start(system: System, count: int) -> MultiShiftState:
    """x = 0 for every shift, with one residual for all."""
    b = system.b[:, None]
    state = MultiShiftState(b.new_zeros(len(b), count), b, system.b_norm, history=[system.b_norm])
    state.residual_norms = torch.full((count,), system.b_norm, dtype=torch.float64)
    state.tolerances = torch.full_like(state.residual_norms, system.tolerance)
    return state


def _begin(A: Shifted, state: MultiShiftState) -> None:
    """All systems from the residual that they share, or else the next one from its own."""
    shared = state.residual.shape[1] == 1
    state.first = 0 if shared else int(state.unsolved[0])
    state.active = state.x.shape[1] if shared else 1
    state.r = state.residual[:, state.first].clone()
    state.P = state.r.expand(state.active, -1).clone().T
    state.rr = A.domain.inner(state.r, state.r)
    state.zeta = state.ratio = torch.ones(state.active, dtype=torch.float64)
    state.alpha, state.beta = 1.0, 0.0


def _step(A: Shifted, state: MultiShiftState, system: System) -> Status:
    """One step; UNFINISHED to continue."""
    if state.active == 0:
        _begin(A, state)
    assert state.P is not None
    p = state.P[:, 0].contiguous()
    Ap = A.of(state.first, p)
    state.products += 1
    ((pAp, is_flat),) = curvatures(A.domain, [p], [Ap])
    if not math.isfinite(pAp):
        return Status.NOT_FINITE
    if is_flat:
        state.direction = p
        return Status.NEGATIVE_CURVATURE
    _move(A, state, Ap, state.rr / pAp)
    return after_step(system, state)


def _move(A: Shifted, state: MultiShiftState, Ap: Tensor, alpha: float) -> None:
    """x + alpha p for every system, and the next p for those that are not solved."""
    assert state.P is not None and state.r is not None
    systems = slice(state.first, state.first + state.active)
    sigma = (A.shifts[systems] - A.shifts[state.first]).to("cpu", torch.float64)
    ratio = 1.0 / (1.0 + sigma * alpha + alpha * state.beta / state.alpha * (1.0 - state.ratio))
    state.x[:, systems].addcmul_(state.P, (alpha * ratio).to(state.x))
    state.r.sub_(Ap, alpha=alpha)
    rr = A.domain.inner(state.r, state.r)
    state.alpha, state.beta, state.rr = alpha, rr / state.rr, rr
    state.zeta = state.zeta * ratio
    state.residual_norms[systems] = state.zeta * math.sqrt(rr)
    state.residual_norm = float(state.residual_norms.max())
    state.iteration += 1
    _drop_solved_systems(state)
    state.ratio = ratio[: state.active]
    state.P.mul_((state.beta * state.ratio**2).to(state.P))
    state.P.addcmul_(state.r[:, None], state.zeta.to(state.P))


def _drop_solved_systems(state: MultiShiftState) -> None:
    """Drop the solved systems at the end: those with the larger shifts are solved first."""
    assert state.P is not None
    systems = slice(state.first, state.first + state.active)
    unsolved = (~(state.residual_norms[systems] <= state.tolerances[systems])).nonzero()
    state.active = int(unsolved[-1]) + 1 if len(unsolved) else 0
    state.P, state.zeta = state.P[:, : state.active], state.zeta[: state.active]


def _check_start(system: System) -> None:
    if system.x0 is not None or system.preconditioner is not None:
        raise ArgumentError(
            expected="no x0 and no preconditioner: the systems share the Krylov space of b",
            got=f"x0 {'given' if system.x0 is not None else 'left out'}, preconditioner "
            f"{system.preconditioner}",
            remedy="Leave both out, or solve for one shift at a time.",
        )
