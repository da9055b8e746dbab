# SPDX-License-Identifier: Apache-2.0
"""`svds`: the largest singular values of a rectangular operator, such as a Jacobian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.checkpoint import FilePath
from hesse.errors import ArgumentError, Status, check_count, check_not_empty, check_tolerances
from hesse.krylov.eigsh import eigsh
from hesse.krylov.gram_schmidt import orthogonalise
from hesse.krylov.lanczos import Lanczos
from hesse.krylov.rounding import unit_roundoff
from hesse.methods import find_method
from hesse.operators.algebra import LinearOperator
from hesse.operators.dense import aslinearoperator
from hesse.progress import Callback
from hesse.result import Result
from hesse.vectors.space import Tree


class _Triplets(NamedTuple):
    U: Tensor
    """Left singular vectors, shape (m, k), orthonormal."""
    S: Tensor
    """Singular values, shape (k,), float64, descending."""
    V: Tensor
    """Right singular vectors, shape (n, k), orthonormal."""


class SingularTriplets(Result, _Triplets):
    """(U, S, V) as of `torch.svd_lowrank`: (m, k), (k,) descending in float64, (n, k)."""

    residuals: Tensor
    """A singular value of A lies within this of S[i], shape (k,)."""
    converged: Tensor
    """Whether each triplet met its tolerance, shape (k,), bool."""
    products: int
    """Products with A and with A'."""
    status: Status
    """Why the iteration ended."""

    def keys(self) -> list[str]:
        """The names of the fields."""
        return [*self._fields, "residuals", "converged", "products", "status"]


@public("hesse.svds({A}, k={k}, method={method})")
def svds(
    A: LinearOperator | Tensor,
    k: int = 6,
    *,
    method: Literal["lanczos"] | Lanczos = "lanczos",
    v0: Tree | None = None,
    rtol: float | None = None,
    max_products: int | None = None,
    max_seconds: float | None = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    checkpoint: FilePath = None,
    memory_budget: int | float | str | None = None,
) -> SingularTriplets:
    r"""The k largest singular values of an operator, with their vectors.

    $$ A' A v = \sigma^2 v, \qquad u = A v / \sigma, \qquad
       \lVert A' u - \sigma v \rVert \text{ as the error} $$

    by `eigsh` of A'A, or of A A' where that is smaller. A singular value below sqrt(eps) times the
    largest is lost in rounding and is returned with a residual that says so.

    Args:
        A: operator (or matrix), m x n.
        k: how many, 1 <= k <= min(m, n).
        method: "lanczos", or `Lanczos(...)` with options of its own.
        v0: as of `eigsh`, on the smaller side.
        rtol: converged when the residual is at most rtol sigma; default the square root of eps.
        max_products, max_seconds: as of `eigsh`; products are those with A and with A' together.
            Within too few products there are fewer than k triplets.
        generator, callback, progress, checkpoint, memory_budget: as of `eigsh`.

    Cost: two products a step (one with A, one with A'), and 2 k at the end; m + b + k + 4
        vectors on the smaller side, or 6 k + 1 at the end, of both together for a square A.

    References: Golub & Van Loan 2013, section 8.6.

    >>> U, S, V = svds(torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 4.0]]), 2)
    >>> S
    tensor([4.0000, 3.0000], dtype=torch.float64)
    """
    A = aslinearoperator(A)
    check_not_empty(A.shape)
    sides = _Sides(A, A.T) if A.codomain.n >= A.domain.n else _Sides(A.T, A)
    k, smaller = check_count("k", k, 1), sides.A.domain.n
    accuracy = unit_roundoff(A) ** 0.5 if rtol is None else rtol
    check_tolerances(rtol=accuracy)
    if k > smaller:
        raise ArgumentError(
            expected=f"1 <= k <= min(m, n) = {smaller}",
            got=f"k = {k}",
            remedy="Ask for fewer.",
        )
    lanczos = find_method(method, {"lanczos": Lanczos()}, "find_pairs")
    few, half = _divide_products(max_products, k, _block_size(sides.A, v0, lanczos))
    pairs = eigsh(
        sides.At @ sides.A,
        few,
        method=lanczos,
        v0=v0,
        rtol=accuracy,
        max_products=half,
        max_seconds=max_seconds,
        generator=generator,
        callback=callback,
        progress=progress,
        checkpoint=checkpoint,
        memory_budget=memory_budget,
    )
    near = pairs.vectors.flip(1)
    far, S, residuals = sides.other_vectors(near, generator)
    rounding = 16 * unit_roundoff(A) * float(S.max())
    triplets = SingularTriplets(*((far, S, near) if sides.A is A else (near, S, far)))
    triplets.residuals = residuals + rounding
    triplets.converged = residuals <= torch.clamp(accuracy * S, min=rounding)
    triplets.products = 2 * pairs.products + 2 * near.shape[1]
    triplets.status = Status.MAX_PRODUCTS if few < k else pairs.status
    if triplets.status is Status.CONVERGED and not bool(triplets.converged.all()):
        triplets.status = Status.STAGNATED
    return triplets


@dataclass(frozen=True)
class _Sides:
    """The operator of which A'A is the smaller product, and its adjoint."""

    A: LinearOperator
    At: LinearOperator

    def other_vectors(
        self, near: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Orthonormal u, sigma = |A v|, and the larger of |A v - sigma u| and |A'u - sigma v|."""
        space = self.A.codomain
        far = self.A._matmat(near).T.contiguous()
        S = [space.norm(Av) for Av in far]
        left = []
        for i, sigma in enumerate(S):
            u = far[i].clone()
            orthogonalise(space, [far[:i]], u)
            if space.norm(u) <= unit_roundoff(self.A) ** 0.5 * sigma:  # for sigma = 0 any u will do
                u = space.gaussian(generator)
                orthogonalise(space, [far[:i]], u)
            u /= space.norm(u)
            left.append(space.norm(far[i] - sigma * u))
            far[i] = u
        sigmas = torch.tensor(S, dtype=torch.float64)
        back = self.At._matmat(far.T) - sigmas.to(near) * near
        right = [self.A.domain.norm(r) for r in back.T.contiguous()]
        return far.T, sigmas, torch.tensor([left, right], dtype=torch.float64).amax(dim=0)


def _block_size(A: LinearOperator, v0: Tree | None, method: Lanczos) -> int:
    """Products with A'A that a step takes; `eigsh` says what is wrong with these arguments."""
    if isinstance(method.block_size, int):
        return method.block_size
    is_block = isinstance(v0, Tensor) and v0.ndim == 2 and not A.domain.is_point(v0)
    return max(1, v0.shape[1]) if isinstance(v0, Tensor) and is_block else 1


def _divide_products(max_products: int | None, k: int, block_size: int) -> tuple[int, int | None]:
    """How many triplets there are products for, and how many with A'A, less those at the end."""
    if max_products is None:
        return k, None
    half = check_count("max_products", max_products, 2 * (block_size + 2)) // 2
    few = min(k, max(1, (half - block_size) // 2))
    return few, half - few
