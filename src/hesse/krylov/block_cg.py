# SPDX-License-Identifier: Apache-2.0
"""Block conjugate gradients: several right-hand sides share one Krylov space.

Every column is minimised over the directions of all. The block of directions is orthonormalised
at every step, and what depends linearly on the rest is left out: dependent right-hand sides and
columns that are solved cost no products.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hesse.errors import Status
from hesse.krylov.block import BlockState
from hesse.krylov.cg import check_symmetric, positive
from hesse.krylov.solution import Solution
from hesse.krylov.system import System, after_step, is_flat, iterate, repeat, solution_of
from hesse.vectors.inner_products import norm
from hesse.vectors.space import all_finite


@dataclass
class BlockCGState(BlockState):
    """The iteration after a step, with the conjugate directions P, A P, and the p'A p."""

    P: Tensor | None = None
    AP: Tensor | None = None
    curvatures: Tensor = field(default_factory=lambda: torch.zeros(0))


def block_cg(system: System) -> Solution:
    r"""Solve A X = B for symmetric positive definite A and B of shape (n, k).

    $$ X \leftarrow X + P (P^T A P)^{-1} P^T R, \qquad Z = M R, \qquad
       P \leftarrow \mathrm{orth} \bigl( Z - P (P^T A P)^{-1} (A P)^T Z \bigr) $$

    Args:
        system: what to solve, b and x0 of shape (n, k); A and M symmetric positive definite.

    Returns:
        Solution: x of shape (n, k), converged when every column meets max(rtol |b_j|, atol);
        `residual_norms` has them all, `residual_norm` the largest. On p'Ap <= 0 for some p in the
        span of P the status is NEGATIVE_CURVATURE, with that p.

    Cost: at most k products an iteration, one for each direction, all in one block; k more for a
        nonzero x0, and k to verify. None if b = 0. Vectors: 8 k for k >= 4 (one more for
        fewer), and 3 more with a preconditioner.

    Raises:
        OperatorError: A not tagged symmetric; M not positive definite.

    References:
        O'Leary 1980, doi:10.1016/0024-3795(80)90247-5; Ji & Li 2017,
        doi:10.1007/s10543-016-0631-z (the directions without breakdown).

    >>> from hesse.operators import diagonal_operator
    >>> A = diagonal_operator(torch.tensor([1.0, 2.0]))
    >>> solution = block_cg(System(A, torch.tensor([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0]])))
    >>> solution.x, solution.iterations, solution.products
    (tensor([[1.0000, 2.0000, 0.0000],
            [0.5000, 1.0000, 0.0000]]), 2, 5)
    """
    check_symmetric(system.A, "block_cg")
    state = _start(system)
    iterate(system, state, lambda: _descend(system, state))
    return solution_of(state, "block-cg", residual_norms=state.residual_norms)


def _start(system: System) -> BlockCGState:
    """x0 with its residual; where a column of b is zero, x is."""
    b, k = system.b, system.b.shape[1]
    x = torch.zeros_like(b) if system.x0 is None else system.x0 * b.any(dim=0)
    if bool(x.any()):
        system.run.require(k, f"block_cg({system.A}, b, x0)", "the residuals of x0 take")
    state = BlockCGState(x, b.clone(), 0.0)
    state.begin(system)
    return state


def _descend(system: System, state: BlockCGState) -> Status:
    """Steps until a rule ends them."""
    status = repeat(system, state, lambda: _step(system, state))
    if status is Status.CONVERGED:
        state.P = None  # should the recomputed residual say otherwise, begin anew from that
    return status


def _step(system: System, state: BlockCGState) -> Status:
    """One step; UNFINISHED to go on."""
    P = _next_directions(system, state)
    if P.shape[1] == 0:
        return Status.STAGNATED
    if not system.run.allows(state, P.shape[1]):
        return system.run.status
    AP = system.A._matmat(P)
    state.products += P.shape[1]
    if not all_finite(AP):
        return Status.NOT_FINITE
    P, AP = _conjugate(system, P, AP)
    curvatures = [system.A.domain.inner(p, Ap) for p, Ap in zip(P.T, AP.T, strict=True)]
    for p, Ap, pAp in zip(P.T, AP.T, curvatures, strict=True):
        if is_flat(pAp, p, Ap):
            state.direction = p.contiguous()
            return Status.NEGATIVE_CURVATURE
    state.P, state.AP = P, AP
    state.curvatures = torch.tensor(curvatures, dtype=torch.float64)
    _move(system, state)
    return after_step(system, state)


def _next_directions(system: System, state: BlockCGState) -> Tensor:
    """An orthonormal basis of Z, made conjugate to the last P."""
    unsolved = state.unsolved
    R = state.residual[:, unsolved.to(state.residual.device)]
    Z = R if system.preconditioner is None else system.preconditioner._matmat(R)
    for r, z in zip(R.T, Z.T, strict=True):
        positive(system, r.contiguous(), z.contiguous())
    if state.P is not None:
        assert state.AP is not None
        beta = (
            system.A.domain.gram(state.AP.T.contiguous(), Z.T.contiguous())
            / state.curvatures[:, None]
        )
        Z = torch.addmm(Z, state.P, beta.to(Z), alpha=-1.0)
    return _orthonormal(system, Z, state.residual_norms[unsolved] / state.b_norms[unsolved])


def _move(system: System, state: BlockCGState) -> None:
    """X + P alpha, in place."""
    assert state.P is not None and state.AP is not None
    slopes = system.A.domain.gram(state.P.T.contiguous(), state.residual.T.contiguous())
    alpha = (slopes / state.curvatures[:, None]).to(state.x)
    state.x.addmm_(state.P, alpha)
    state.residual.addmm_(state.AP, alpha, alpha=-1.0)
    state.measure()
    state.iteration += 1


def _conjugate(system: System, P: Tensor, AP: Tensor) -> tuple[Tensor, Tensor]:
    """P and A P with P turned so that P'A P is diagonal."""
    S = system.A.domain.gram(P.T.contiguous(), AP.T.contiguous())
    turn = torch.linalg.eigh((S + S.T) / 2)[1].to(P)
    return P @ turn, AP @ turn


def _orthonormal(system: System, W: Tensor, reduction: Tensor) -> Tensor:
    """An orthonormal basis of the columns of W, leaving out those that depend on others.

    A residual is the more rounding the further it is reduced, so that its column is judged by that.
    """
    basis = torch.empty_like(W.T, memory_format=torch.contiguous_format)
    smallest, rank = (torch.finfo(W.dtype).eps ** 0.75 / reduction).clamp(max=0.1), 0
    for w, least in zip(W.T, smallest.tolist(), strict=True):
        w = w / norm(w.contiguous())
        for _ in range(2):  # twice is enough
            w = w - system.A.domain.inners(basis[:rank], w) @ basis[:rank]
        rest = norm(w)
        if rest > least:
            basis[rank] = w / rest
            rank += 1
    return basis[:rank].T
