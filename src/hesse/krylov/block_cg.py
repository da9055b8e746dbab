# SPDX-License-Identifier: Apache-2.0
"""Block conjugate gradients: several right-hand sides share one Krylov space.

Every column is minimised over the directions of all. The block of directions is orthonormalised
at every step, and directions that depend linearly on the others are left out: dependent right-hand
sides and solved columns cost no products.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from hesse.errors import Status
from hesse.krylov.block import BlockState
from hesse.krylov.method import Method
from hesse.krylov.solution import Solution
from hesse.krylov.system import System, after_step, curvatures, iterate, repeat, solution_of
from hesse.vectors.space import Space


@dataclass
class BlockCGState(BlockState):
    """The iteration after a step, with the conjugate directions P, A P, and the p'A p."""

    P: Tensor | None = None
    AP: Tensor | None = None
    curvatures: Tensor = field(default_factory=lambda: torch.zeros(0))


@dataclass(frozen=True, repr=False)
class BlockCG(Method):
    r"""Block conjugate gradients, for symmetric positive definite A and b of shape (n, k).

    $$ X \leftarrow X + P (P^T A P)^{-1} P^T R, \qquad Z = M R, \qquad
       P \leftarrow \mathrm{orth} \bigl( Z - P (P^T A P)^{-1} (A P)^T Z \bigr) $$

    Converged when every column meets max(rtol |b_j|, atol). On p'Ap <= 0 for some p in the span of
    P the status is NEGATIVE_CURVATURE, with that p.

    Cost: at most k products an iteration, one for each direction, all in one block; k more for a
        nonzero x0, and k to verify. None if b = 0. Vectors: 8 k for k >= 4 (one more for
        fewer), and 3 more with a preconditioner.

    Raises:
        HesseError: A not tagged symmetric; M not positive definite.

    References:
        O'Leary 1980, doi:10.1016/0024-3795(80)90247-5; Ji & Li 2017,
        doi:10.1007/s10543-016-0631-z (the directions without breakdown).

    >>> from hesse.krylov import solve
    >>> A, B = torch.diag(torch.tensor([1.0, 2.0])), torch.tensor([[1.0, 2.0, 0.0]] * 2)
    >>> solution = solve(A, B, BlockCG())
    >>> solution.x, solution.iterations, solution.products
    (tensor([[1.0000, 2.0000, 0.0000],
            [0.5000, 1.0000, 0.0000]]), 2, 5)
    """

    name: ClassVar[str] = "block-cg"

    def solve_system(self, system: System) -> Solution:
        """The solution for a block b as a whole, or for a vector."""
        if system.b.ndim == 1:
            return self._solve(system)
        system.run.reserved = system.b.shape[1]  # the products that verify X
        system.check_symmetric()
        state = _start(system)
        iterate(system, state, lambda: _descend(system, state))
        return solution_of(state, self.name, residual_norms=state.residual_norms)

    def _solve(self, system: System) -> Solution:
        """The solution for a vector b: that for a block of one column."""
        x0 = None if system.x0 is None else system.x0[:, None]
        solution = self.solve_system(replace(system, b=system.b[:, None], x0=x0))
        return replace(solution, x=solution.x[:, 0], residual_norms=None)


def _start(system: System) -> BlockCGState:
    """x0 with its residual; where a column of b is zero, x is."""
    b, A = system.b, system.A
    if system.x0 is None:
        x = torch.zeros_like(b)
    else:
        x = system.x0 * (A.codomain.column_norms(b) > 0.0).to(b.device)
    if A.domain.any(x):
        system.run.require(b.shape[1], "the residuals of x0 take")
    state = BlockCGState(x, b.clone(), 0.0)
    state.begin(system)
    return state


def _descend(system: System, state: BlockCGState) -> Status:
    """Steps until a rule ends them."""
    status = repeat(system, state, lambda: _step(system, state))
    if status is Status.CONVERGED:
        state.P = None  # if the recomputed residual is too large, restart from that
    return status


def _step(system: System, state: BlockCGState) -> Status:
    """One step; UNFINISHED to continue."""
    P = _next_directions(system, state)
    if P.shape[1] == 0:
        return Status.STAGNATED
    if not system.run.allows(state, P.shape[1]):
        return system.run.status
    AP = system.A._matmat(P)
    state.products += P.shape[1]
    space = system.A.domain
    if not space.all_finite(AP):
        return Status.NOT_FINITE
    P, AP = _conjugate(system, P, AP)
    found = list(curvatures(space, list(P.T), list(AP.T)))
    for p, (_, is_flat) in zip(P.T, found, strict=True):
        if is_flat:
            state.direction = p.contiguous()
            return Status.NEGATIVE_CURVATURE
    state.P, state.AP = P, AP
    state.curvatures = torch.tensor([pAp for pAp, _ in found], dtype=torch.float64)
    _move(system, state)
    return after_step(system, state)


def _next_directions(system: System, state: BlockCGState) -> Tensor:
    """An orthonormal basis of Z, made conjugate to the last P."""
    unsolved = state.unsolved
    R = state.residual[:, unsolved.to(state.residual.device)]
    Z = R if system.preconditioner is None else system.preconditioner._matmat(R)
    for r, z in zip(R.T, Z.T, strict=True):
        system.preconditioned_inner(r.contiguous(), z.contiguous())
    if state.P is not None:
        assert state.AP is not None
        slopes = system.A.domain.gram(state.AP.T.contiguous(), Z.T.contiguous())
        Z = torch.addmm(Z, state.P, (slopes / state.curvatures[:, None]).to(Z), alpha=-1.0)
    reduction = state.residual_norms[unsolved] / state.b_norms[unsolved]
    return _orthonormal(system.A.domain, Z, reduction)


def _move(system: System, state: BlockCGState) -> None:
    """X + P alpha, in place."""
    assert state.P is not None and state.AP is not None
    slopes = system.A.domain.gram(state.P.T.contiguous(), state.residual.T.contiguous())
    alpha = (slopes / state.curvatures[:, None]).to(state.x)
    state.x.addmm_(state.P, alpha)
    state.residual.addmm_(state.AP, alpha, alpha=-1.0)
    state.measure(system)
    state.iteration += 1


def _conjugate(system: System, P: Tensor, AP: Tensor) -> tuple[Tensor, Tensor]:
    """P and A P with P turned so that P'A P is diagonal."""
    S = system.A.domain.gram(P.T.contiguous(), AP.T.contiguous())
    turn = torch.linalg.eigh((S + S.T) / 2)[1].to(P)
    return P @ turn, AP @ turn


def _orthonormal(space: Space, W: Tensor, reduction: Tensor) -> Tensor:
    """An orthonormal basis of the columns of W, leaving out those that depend on others.

    The further a residual is reduced the more of it is rounding: a column that leaves no more than
    that depends on the others.
    """
    basis = torch.empty_like(W.T, memory_format=torch.contiguous_format)
    smallest, rank = (torch.finfo(W.dtype).eps ** 0.75 / reduction).clamp(max=0.1), 0
    for w, least in zip(W.T, smallest.tolist(), strict=True):
        w = w / space.norm(w.contiguous())
        for _ in range(2):  # twice is enough
            w = w - space.inners(basis[:rank], w) @ basis[:rank]
        rest = space.norm(w)
        if rest > least:
            basis[rank] = w / rest
            rank += 1
    return basis[:rank].T
