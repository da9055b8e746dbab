# SPDX-License-Identifier: Apache-2.0
"""Optimal brain surgery: masks from the inverse of the curvature, which elimination updates."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.apps.pruning.model import QuadraticModel
from hesse.apps.pruning.patterns import Pattern
from hesse.errors import OperatorError, StructureError
from hesse.operators.diagonal import IdentityOperator

DENSE = 4096
"""The most parameters whose inverse curvature is held as a matrix."""
_ROUNDS = 50  # weights are eliminated in so many chunks


def optimal_brain_surgery(
    model: QuadraticModel, pattern: Pattern, sparsity: float, damping: float
) -> Tensor:
    """Remove in chunks where w_B' ([A^-1]_BB)^-1 w_B / 2 is least; the others make up for it.

    Beyond `DENSE` parameters A must have an inverse with a diagonal, and all go in one chunk.
    """
    if model.A.domain.n <= DENSE:
        return _greedy(model, pattern, sparsity, damping)
    inverse = (model.A + damping * IdentityOperator(model.A.domain))._inverse()
    diagonal = None if inverse is None else inverse._diagonal()
    if diagonal is None or not pattern.is_single:
        raise StructureError(
            expected=f"at most {DENSE} parameters, or a curvature with an inverse and single "
            "entries, for score='obs'",
            got=f"{model.A.domain.n} parameters, {type(model.A).__name__}",
            remedy="Use score='exchange', or curvature=hesse.kfac_operator.",
        )
    keep = torch.ones_like(model.w, dtype=torch.bool)
    score = model.w**2 / diagonal
    keep[pattern.prunable] = ~pattern.removed(score[pattern.prunable], sparsity)
    return keep


def _greedy(model: QuadraticModel, pattern: Pattern, sparsity: float, damping: float) -> Tensor:
    inverse = _inverted(model.dense, damping)
    w = model.w.double() - inverse @ model.g.double()
    gone = torch.zeros(pattern.number, dtype=torch.bool, device=w.device)
    total = int(pattern.removed(model.w[pattern.prunable].abs(), sparsity).sum())
    rounds = min(_ROUNDS, max(total, 1))
    for k in range(1, rounds + 1):
        score = torch.where(gone, -1.0, _scores(w, inverse, pattern, gone))
        new = pattern.removed(score, sparsity * k / rounds) & ~gone
        P = pattern.prunable[new]
        if len(P) == 0:
            continue
        w, inverse = eliminated(w, inverse, P)
        gone |= new
    keep = torch.ones_like(model.w, dtype=torch.bool)
    keep[pattern.prunable] = ~gone
    return keep


def eliminated(w: Tensor, inverse: Tensor, P: Tensor) -> tuple[Tensor, Tensor]:
    """The weights after those of P are removed, and the inverse of A on the others (0 on P)."""
    step = torch.linalg.solve(inverse[P][:, P], inverse[P])
    w = w - step.T @ w[P]
    inverse = inverse - inverse[:, P] @ step
    w[P] = 0.0
    inverse[P], inverse[:, P] = 0.0, 0.0
    return w, inverse


def _scores(w: Tensor, inverse: Tensor, pattern: Pattern, gone: Tensor) -> Tensor:
    """What the removal of each entry, or of its group, costs; of a group its share for each."""
    at = pattern.prunable
    if pattern.is_single:
        diagonal = torch.where(gone, 1.0, inverse.diagonal()[at])
        return 0.5 * w[at] ** 2 / diagonal
    score, sizes = torch.zeros_like(w[at]), pattern.sizes
    order = pattern.group.argsort(stable=True)
    for members in order.split(sizes.tolist()):
        if not bool(gone[members[0]]):
            B = at[members]
            cost = 0.5 * w[B] @ torch.linalg.solve(inverse[B][:, B], w[B])
            score[members] = cost / len(members)
    return score


def _inverted(A: Tensor, damping: float) -> Tensor:
    """(A + mu I)^-1 by Cholesky."""
    A = A + damping * torch.eye(len(A), dtype=A.dtype, device=A.device)
    factor, info = torch.linalg.cholesky_ex(A)
    if int(info) > 0:
        raise OperatorError(
            expected="A + mu I to be positive definite, for score='obs'",
            got=f"a matrix that is not (damping mu = {damping:g})",
            remedy="Use curvature='ggn' and a larger damping, or damping=None to search for one.",
        )
    return torch.cholesky_inverse(factor)
