# SPDX-License-Identifier: Apache-2.0
"""GMRES with restarts: the least residual over the Krylov space, for any square system.

The Arnoldi process builds an orthonormal basis V of the space, rotations make the projected matrix
triangular as it grows, and x is formed at the end of a cycle. The preconditioner stands on the
right, so that the residual is the true one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from hesse.errors import ShapeError, Status, check_count
from hesse.krylov.gram_schmidt import orthogonalise
from hesse.krylov.method import Method
from hesse.krylov.rounding import rounding_level, unit_roundoff
from hesse.krylov.solution import Solution
from hesse.krylov.system import SolverState, System, after_step, iterate, repeat, solution_of
from hesse.vectors.space import unshared


@dataclass
class GMRESState(SolverState):
    """The iteration after a step; x and `residual` are those at the beginning of the cycle.

    V has the basis as rows, `triangle` the columns of Q'H, g is Q' |r| e_1.
    """

    V: Tensor | None = None
    triangle: list[list[float]] = field(default_factory=list)
    rotations: list[list[float]] = field(default_factory=list)
    g: list[float] = field(default_factory=list)


@dataclass(frozen=True, repr=False)
class GMRES(Method):
    r"""The method of generalised minimal residuals with restarts, GMRES(m), for square A.

    $$ A M V_k = V_{k+1} H_k, \qquad x_k = x_0 + M V_k y_k, \qquad
       y_k = \arg\min_y \lVert \lVert r_0 \rVert e_1 - H_k y \rVert $$

    M need not be symmetric. STAGNATED when a whole cycle gains nothing, or when the space is
    complete and holds no solution: then A is singular to rounding.

    Args:
        restart: m, the dimension of the space after which a new one is begun.

    Cost: one product an iteration; one more at every restart, for a nonzero x0 and to verify. None
        if b = 0. Vectors: m + 1 for the basis, x, r, and two more.

    Raises:
        HesseError: A not square; restart < 1.

    References:
        Saad & Schultz 1986, doi:10.1137/0907058.

    >>> from hesse.krylov import solve
    >>> A = torch.tensor([[1.0, 1.0], [0.0, 2.0]])
    >>> solution = solve(A, torch.tensor([3.0, 2.0]), GMRES(restart=2))
    >>> solution.x, solution.iterations, solution.products
    (tensor([2.0000, 1.0000]), 2, 3)
    """

    name: ClassVar[str] = "gmres"
    restart: int = 30

    def _check(self) -> None:
        self._set(restart=check_count("restart", self.restart, 1))

    def _solve(self, system: System) -> Solution:
        _check_square(system)
        m = min(self.restart, system.A.domain.n)
        state = system.start(GMRESState)
        iterate(system, state, lambda: _descend(system, state, m))
        if state.status is Status.INTERRUPTED:
            _end_cycle(system, state)
        return solution_of(state, self.name)


def _descend(system: System, state: GMRESState, m: int) -> Status:
    """Steps until a rule ends them."""
    status = repeat(system, state, lambda: _step(system, state, m))
    _end_cycle(system, state)
    return status


def _step(system: System, state: GMRESState, m: int) -> Status:
    """One step; UNFINISHED to continue."""
    if len(state.triangle) == m:
        if not system.run.allows(state, 2):  # the residual of the restart, and the step
            return system.run.status
        status = _restart(system, state)
        if status is not Status.UNFINISHED:
            return status
    if not state.g:
        _begin_cycle(state, m)
    V, k, space = state.V, len(state.triangle), system.A.domain
    assert V is not None
    v = system.precondition(V[k])
    w = unshared(system.A._matvec(v), v)
    state.products += 1
    h, (rest,) = orthogonalise(space, [V[: k + 1]], w)
    size = math.hypot(float(h.norm()), rest)
    if not math.isfinite(size):
        return Status.NOT_FINITE
    smallest = rounding_level(unit_roundoff(space), size)
    if rest <= smallest:
        rest = 0.0  # the space is complete
    if not _rotate(state, [*h.tolist(), rest], smallest):
        return Status.STAGNATED
    if rest > 0.0:
        V[k + 1] = w / rest
    state.iteration += 1
    return after_step(system, state)


def _begin_cycle(state: GMRESState, m: int) -> None:
    r = state.residual
    if state.V is None:
        state.V = r.new_zeros(m + 1, r.numel())
    state.V[0] = r / state.residual_norm
    state.g = [state.residual_norm]


def _rotate(state: GMRESState, h: list[float], smallest: float) -> bool:
    """Append a column of H to the triangle; False, changing nothing, if that is singular."""
    for i, (c, s) in enumerate(state.rotations):
        h[i], h[i + 1] = c * h[i] + s * h[i + 1], c * h[i + 1] - s * h[i]
    above, a, b = h[:-2], h[-2], h[-1]
    diagonal = math.hypot(a, b)
    if diagonal <= smallest:
        return False
    c, s = a / diagonal, b / diagonal
    state.rotations.append([c, s])
    state.triangle.append([*above, diagonal])
    state.g[-1:] = [c * state.g[-1], -s * state.g[-1]]
    state.residual_norm = abs(state.g[-1])
    return True


def _restart(system: System, state: GMRESState) -> Status:
    """A new cycle from the recomputed residual, if the last one has gained anything."""
    space = system.A.domain
    gain = 1.0 - state.residual_norm / space.norm(state.residual)
    if gain <= unit_roundoff(space) ** 0.5:
        return Status.STAGNATED
    _end_cycle(system, state)
    state.recompute(system)
    return Status.CONVERGED if state.is_solved(system) else Status.UNFINISHED


def _end_cycle(system: System, state: GMRESState) -> None:
    """x + M V y for the y of least residual."""
    if state.triangle:
        assert state.V is not None
        y = _back_substitute(state.triangle, state.g).to(state.x)
        state.x += system.precondition(y @ state.V[: len(y)])
    state.triangle, state.rotations, state.g = [], [], []


def _back_substitute(triangle: list[list[float]], g: list[float]) -> Tensor:
    k = len(triangle)
    R = torch.zeros(k, k, dtype=torch.float64)
    for j, column in enumerate(triangle):
        R[: j + 1, j] = torch.tensor(column, dtype=torch.float64)
    right = torch.tensor(g[:k], dtype=torch.float64)
    return torch.linalg.solve_triangular(R, right[:, None], upper=True)[:, 0]


def _check_square(system: System) -> None:
    rows, columns = system.A.shape
    if rows != columns:
        raise ShapeError(
            expected="a square operator for gmres",
            got=f"shape {system.A.shape}",
            remedy="Use method='lsmr' for least squares.",
        )
