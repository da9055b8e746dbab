# SPDX-License-Identifier: Apache-2.0
"""`svds`: the largest singular values of a rectangular operator, such as a Jacobian."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.checkpoint import FilePath
from hesse.errors import ArgumentError, Status, check_count, check_tolerances
from hesse.krylov.eigsh import eigsh
from hesse.krylov.gram_schmidt import orthogonalise
from hesse.krylov.lanczos import unit_roundoff
from hesse.operators.algebra import LinearOperator
from hesse.operators.dense import aslinearoperator
from hesse.progress import Callback
from hesse.vectors.inner_products import norm
from hesse.vectors.space import Tree


class _Triplets(NamedTuple):
    U: Tensor
    """Left singular vectors, shape (m, k), orthonormal."""
    S: Tensor
    """Singular values, shape (k,), float64, descending."""
    V: Tensor
    """Right singular vectors, shape (n, k), orthonormal."""


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


@public("hesse.svds({A})")
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
        v0, block_size, basis_size, memory_budget: as of `eigsh`; v0 is on the smaller side.
        max_products, max_seconds: as of `eigsh`; products are those with A and with A' together.
            Within too few products there are fewer than k triplets.
        generator, callback, progress, checkpoint: as of `eigsh`.

    Cost: two products a step (one with A, one with A'), and 2 k at the end; m + b + k + 4
        vectors on the smaller side, or 6 k + 1 at the end, of both together for a square A.

    References: Golub & Van Loan 2013, section 8.6.

    >>> U, S, V = svds(torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 4.0]]), 2)
    >>> S
    tensor([4.0000, 3.0000], dtype=torch.float64)
    """
    A = aslinearoperator(A)
    rows, columns = A.shape
    call = f"hesse.svds({A}, k={k!r})"
    k = check_count("k", k, 1, call)
    accuracy = unit_roundoff(A) ** 0.5 if rtol is None else rtol
    check_tolerances(call, rtol=accuracy)
    if k > min(rows, columns):
        raise ArgumentError(
            call,
            expected=f"1 <= k <= min(m, n) = {min(rows, columns)}",
            got=f"k = {k}",
            remedy="Ask for fewer.",
        )
    tall = rows >= columns
    inner, outer = (A, A.T) if tall else (A.T, A)
    few, half = _shares(max_products, k, _width(inner, v0, block_size), call)
    pairs = eigsh(
        outer @ inner,
        few,
        rtol=accuracy,
        v0=v0,
        block_size=block_size,
        basis_size=basis_size,
        memory_budget=memory_budget,
        max_products=half,
        max_seconds=max_seconds,
        generator=generator,
        callback=callback,
        progress=progress,
        checkpoint=checkpoint,
    )
    near = pairs.vectors.flip(1)
    far, S, residuals = _other_side(inner, outer, near, generator)
    S_top = float(S.max())
    converged = residuals <= torch.clamp(accuracy * S, min=16 * unit_roundoff(A) * S_top)
    U, V = (far, near) if tall else (near, far)
    triplets = SingularTriplets(U, S, V)
    triplets.residuals = residuals + 16 * unit_roundoff(A) * S_top
    triplets.converged, triplets.status = converged, pairs.status
    if few < k:
        triplets.status = Status.MAX_PRODUCTS
    elif pairs.status is Status.CONVERGED and not bool(converged.all()):
        triplets.status = Status.STAGNATED
    triplets.products = 2 * pairs.products + 2 * near.shape[1]
    return triplets


def _other_side(
    A: LinearOperator, At: LinearOperator, near: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Orthonormal u, sigma = |A v|, and the larger of |A v - sigma u| and |A'u - sigma v|."""
    far = A._matmat(near).T.contiguous()
    S = [norm(Av) for Av in far]
    left = []
    for i, sigma in enumerate(S):
        u = far[i].clone()
        orthogonalise(A.codomain, [far[:i]], u)
        if norm(u) <= unit_roundoff(A) ** 0.5 * sigma:  # of sigma = 0 any direction will do
            u = At.domain.gaussian(generator)
            orthogonalise(A.codomain, [far[:i]], u)
        u /= norm(u)
        left.append(norm(far[i] - sigma * u))
        far[i] = u
    sigmas = torch.tensor(S, dtype=torch.float64)
    back = At._matmat(far.T) - sigmas.to(near) * near
    right = [norm(r) for r in back.T.contiguous()]
    return far.T, sigmas, torch.tensor([left, right], dtype=torch.float64).amax(dim=0)


def _width(A: LinearOperator, v0: Tree | None, block_size: int | None) -> int:
    """Products with A'A that a step takes; what is wrong with these arguments `eigsh` says."""
    is_block = isinstance(v0, Tensor) and v0.ndim == 2 and not A.domain.is_point(v0)
    given = v0.shape[1] if isinstance(v0, Tensor) and is_block else 1
    return block_size if isinstance(block_size, int) else max(1, given)


def _shares(max_products: int | None, k: int, width: int, call: str) -> tuple[int, int | None]:
    """How many triplets may be had, and for how many products with A'A, less those at the end."""
    if max_products is None:
        return k, None
    half = check_count("max_products", max_products, 2 * (width + 2), call) // 2
    few = min(k, max(1, (half - width) // 2))
    return few, half - few
