# SPDX-License-Identifier: Apache-2.0
"""`svds`: the largest singular values of a rectangular operator, such as a Jacobian."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hesse.checkpoint import FilePath
from hesse.errors import ArgumentError, Status
from hesse.krylov.eigsh import eigsh
from hesse.krylov.lanczos import unit_roundoff
from hesse.operators.base import LinearOperator
from hesse.operators.dense import aslinearoperator
from hesse.progress import Callback
from hesse.vectors import Tree, norm


class _Triplets(NamedTuple):
    U: Tensor
    """Left singular vectors, shape (m, k); those of a singular value 0 may be 0."""
    S: Tensor
    """Singular values, shape (k,), float64, descending."""
    V: Tensor
    """Right singular vectors, shape (n, k); as U."""


class SingularTriplets(_Triplets):
    """(U, S, V) as of `torch.svd_lowrank`: (m, k), (k,) descending in float64, (n, k)."""

    residuals: Tensor
    """A singular value of A lies within this of S[i], shape (k,)."""
    converged: Tensor
    """Whether each triplet met its tolerance, shape (k,), bool."""
    products: int
    """Products with A and with A'."""
    status: Status
    """Why the iteration ended."""


def svds(
    A: LinearOperator | Tensor,
    k: int = 6,
    *,
    rtol: float | None = None,
    v0: Tree | None = None,
    block_size: int | None = None,
    basis_size: int | None = None,
    memory_budget: int | float | str | None = None,
    max_products: int | None = None,
    max_seconds: float | None = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    checkpoint: FilePath = None,
) -> SingularTriplets:
    r"""The k largest singular values of an operator, with their vectors.

    $$ A' A v = \sigma^2 v, \qquad u = A v / \sigma, \qquad
       \lVert A' u - \sigma v \rVert \text{ as the error} $$

    by `eigsh` of A'A, or of A A' where that is smaller. A singular value below sqrt(eps) times the
    largest drowns in rounding and is returned with a residual that says so.

    Args:
        A: operator (or matrix), m x n.
        k: how many, 1 <= k <= min(m, n).
        rtol: converged when the residual is at most rtol sigma; default the square root of eps.
        v0, block_size, basis_size, memory_budget, max_products, max_seconds, generator, callback,
            progress, checkpoint: as of `eigsh`; products are those with A and with A' together, v0
            is on the smaller side.

    Cost: two products a step (one with A, one with A'), and 2 k at the end; m + b vectors on the
        smaller side and 2 k at the end.

    References: Golub & Van Loan 2013, section 8.6.

    >>> U, S, V = svds(torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 4.0]]), 2)
    >>> S
    tensor([4.0000, 3.0000], dtype=torch.float64)
    """
    A = aslinearoperator(A)
    rows, columns = A.shape
    if not 1 <= k <= min(rows, columns):
        raise ArgumentError(
            f"hesse.svds({A}, k={k})",
            expected=f"1 <= k <= min(m, n) = {min(rows, columns)}",
            got=f"k = {k}",
            remedy="Ask for fewer.",
        )
    tall = rows >= columns
    inner, outer = (A, A.T) if tall else (A.T, A)
    accuracy = float(unit_roundoff(A) ** 0.5 if rtol is None else rtol)
    pairs = eigsh(
        outer @ inner,
        k,
        rtol=accuracy,
        v0=v0,
        block_size=block_size,
        basis_size=basis_size,
        memory_budget=memory_budget,
        max_products=_half(max_products, k),
        max_seconds=max_seconds,
        generator=generator,
        callback=callback,
        progress=progress,
        checkpoint=checkpoint,
    )
    near = pairs.vectors.flip(1)
    far, S, residuals = _other_side(inner, outer, near)
    S_top = float(S.max())
    converged = residuals <= torch.clamp(accuracy * S, min=16 * unit_roundoff(A) * S_top)
    U, V = (far, near) if tall else (near, far)
    triplets = SingularTriplets(U, S, V)
    triplets.residuals = residuals + 16 * unit_roundoff(A) * S_top
    triplets.converged, triplets.status = converged, pairs.status
    if pairs.status is Status.CONVERGED and not bool(converged.all()):
        triplets.status = Status.STAGNATED
    triplets.products = 2 * pairs.products + 2 * near.shape[1]
    return triplets


def _other_side(
    A: LinearOperator, At: LinearOperator, near: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The vectors u = A v / sigma (of length 1), sigma = |A v|, and |A'u - sigma v|."""
    far = A._matmat(near)
    S = torch.tensor([norm(u) for u in far.T.contiguous()], dtype=torch.float64)
    far = far / torch.where(S > 0.0, S, 1.0).to(far)
    back = At._matmat(far) - S.to(far) * near
    residuals = [norm(r) for r in back.T.contiguous()]
    return far, S, torch.tensor(residuals, dtype=torch.float64)


def _half(max_products: int | None, k: int) -> int | None:
    """The products with A'A that so many with A and A' allow, less those at the end."""
    if max_products is None or max_products < 1:
        return max_products
    return max(1, max_products // 2 - k)
