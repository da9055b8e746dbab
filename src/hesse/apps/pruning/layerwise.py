# SPDX-License-Identifier: Apache-2.0
"""Layer-wise surgery: one elimination, column by column, for all rows of a weight.

The change of what a layer puts out, |(W' - W) X|^2 / N, has the same matrix H = 2 X X' / N for each
row of W. So one Cholesky factor of H^-1 serves all rows, and costs what one row would.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.apps.pruning.model import QuadraticModel
from hesse.apps.pruning.patterns import Pattern
from hesse.curvature.kronecker.blocks import Block
from hesse.curvature.kronecker.operator import KroneckerCurvature
from hesse.errors import OperatorError, StructureError

_COLUMNS = 128  # of which the lowest scores go together


def layerwise_surgery(
    model: QuadraticModel, pattern: Pattern, sparsity: float, damping: float
) -> Tensor:
    """The mask (n,) of what is kept. Every weight gets the same sparsity."""
    A = model.A
    assert isinstance(A, KroneckerCurvature)
    if not pattern.is_single:
        raise StructureError(
            expected="single entries or n:m, for score='obs' with curvature='layers'",
            got="groups that are removed as a whole",
            remedy="Use score='exchange', or curvature='ggn'.",
        )
    allowed = torch.zeros_like(model.w, dtype=torch.bool)
    allowed[pattern.prunable] = True
    keep, left = torch.ones_like(allowed), allowed.clone()
    for block in A.blocks:
        if block.kind != "kronecker":
            continue
        matrices = block.place.take(allowed).reshape(block.shape)
        kept = _kept(block, model.w, matrices, pattern, sparsity, damping)
        block.place.put(keep, kept.reshape(-1))
        block.place.put(left, torch.zeros_like(kept).reshape(-1))
    if bool(left.any()):
        name = A.domain.first_bad_name(torch.where(left, torch.nan, 0.0).to(model.w))
        raise StructureError(
            expected="weights that multiply the inputs of a layer, for curvature='layers'",
            got=f"{name}, which is no such weight",
            remedy="Leave it out of `where`.",
        )
    return keep


def _kept(
    block: Block,
    w: Tensor,
    allowed: Tensor,
    pattern: Pattern,
    sparsity: float,
    damping: float,
) -> Tensor:
    """The mask of one weight, (groups, rows, columns)."""
    W, masks = block.place.take(w).reshape(block.shape), []
    for number, H in enumerate(block.right.entries):
        columns = allowed[number].any(0)  # a bias is a column as well
        if not bool(columns.any()):
            masks.append(torch.ones_like(allowed[number]))
            continue
        H = 2.0 * (torch.diag(H) if block.right.is_diagonal else H)
        m = None if pattern.kept_of is None else pattern.kept_of[1]
        result = eliminate_columns(
            W[number], H + damping * torch.eye(len(H)).to(H), sparsity, columns, m
        )
        masks.append(result[1])
    return torch.stack(masks)


def eliminate_columns(
    W: Tensor, H: Tensor, sparsity: float, allowed: Tensor, m: int | None = None
) -> tuple[Tensor, Tensor]:
    """Weights of which some are zero, the others of the same row changed to make up for them.

    With U the upper Cholesky factor of H^-1, U'U = H^-1, an entry w of column j costs w^2 / U_jj^2;
    when it goes, the later columns of its row change by -(w / U_jj) U_j. Inputs that are always
    zero, H_jj = 0, lose their weights first.

    Args:
        W: (rows, q).
        H: (q, q), with its damping.
        sparsity: the share that goes, of every 128 columns, or of every m entries of a row.
        allowed: the columns that are pruned, a mask (q,).
        m: of the pattern "n:m".

    Returns:
        The weights, and the mask of what is kept, both (rows, q).
    """
    W, H = W.double().clone(), H.double().clone()
    dead = H.diagonal() == 0.0
    H.diagonal()[dead] = 1.0
    W[:, dead] = 0.0
    U = _inverse_factor(H)
    keep, d = torch.ones_like(W, dtype=torch.bool), U.diagonal()
    width = _COLUMNS if m is None else m
    for start in range(0, len(d), width):
        stop = min(start + width, len(d))
        here = allowed[start:stop]
        score = (W[:, start:stop] ** 2 / d[start:stop] ** 2)[:, here]
        keep[:, start:stop][:, here] = ~_lowest(score, sparsity, by_row=m is not None)
        for j in range(start, stop):
            error = torch.where(keep[:, j], 0.0, W[:, j]) / d[j]
            W[:, j:] -= torch.outer(error, U[j, j:])
            W[:, j] = torch.where(keep[:, j], W[:, j], 0.0)
    return W, keep


def _lowest(score: Tensor, sparsity: float, by_row: bool) -> Tensor:
    """The lowest scores: of each row their share, or of all."""
    table = score if by_row else score.reshape(1, -1)
    number = round(sparsity * table.shape[1])
    gone = torch.zeros_like(table, dtype=torch.bool)
    gone.scatter_(1, table.argsort(dim=1, stable=True)[:, :number], True)
    return gone.reshape(score.shape)


def _inverse_factor(H: Tensor) -> Tensor:
    """U, upper triangular, with U'U = H^-1."""
    factor, info = torch.linalg.cholesky_ex(H)
    if int(info) > 0:
        raise OperatorError(
            expected="second moments of the inputs that are positive definite",
            got="a matrix that is not: fewer examples than inputs, or inputs that depend linearly",
            remedy="Give a damping, such as a hundredth of the mean of their diagonal, or "
            "damping=None to search for one.",
        )
    return torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
