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
from hesse.krylov.extreme import with_usual_products
from hesse.krylov.gram_schmidt import orthogonalise
from hesse.krylov.lanczos import Lanczos
from hesse.krylov.rounding import rounding_level, unit_roundoff
from hesse.methods import find_method
from hesse.operators.algebra import LinearOperator
from hesse.operators.dense import aslinearoperator
from hesse.progress import Callback
from hesse.result import Result
from hesse.vectors.rows import transform
from hesse.vectors.space import Space, Tree

# Where the smaller side is of this dimension or less, and squares hide a triplet, all are computed.
_SMALL = 64


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
    unseen: float | None
    """The probability that a singular value which is wanted was not seen is at most this, as in
    `Eigenpairs.unseen`; 0 where all triplets were computed."""
    domain: Space
    """The space of A, and `codomain` that of A v, for `hesse.low_rank_operator`."""
    codomain: Space

    def keys(self) -> list[str]:
        """The names of the fields."""
        return [*self._fields, "residuals", "converged", "products", "status", "unseen"]


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

    by `eigsh` of A'A, or of A A' where that is smaller, and the singular value decomposition of A
    on the span of the vectors that it finds. Singular values below sqrt(eps) times the largest,
    which cannot be told apart in A'A, may be returned with a residual that says so; for
    min(m, n) <= 64 and without a limit of products, all triplets are then computed.

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
        vectors on the smaller side, or 5 k at the end, of both together for a square A.

    References: Golub & Van Loan 2013, section 8.6.

    >>> U, S, V = svds(torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 4.0]]), 2)
    >>> S
    tensor([4.0000, 3.0000], dtype=torch.float64)
    """
    A = aslinearoperator(A)
    check_not_empty(A.shape)
    k, smaller = check_count("k", k, 1), min(A.shape)
    accuracy = unit_roundoff(A) ** 0.5 if rtol is None else rtol
    check_tolerances(rtol=accuracy)
    if k > smaller:
        raise ArgumentError(
            expected=f"1 <= k <= min(m, n) = {smaller}",
            got=f"k = {k}",
            remedy="Ask for fewer.",
        )
    lanczos = find_method(method, {"lanczos": Lanczos()}, "find_pairs")

    def find(scaled: LinearOperator, scale: float, lost: int) -> SingularTriplets:
        tall = A.codomain.n >= A.domain.n
        sides = _Sides(scaled, scaled.T) if tall else _Sides(scaled.T, scaled)
        few, half = _divide_products(max_products, k, _block_size(sides.A, v0, lanczos), lost)
        pairs = eigsh(
            _Gram(sides),
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
        near, products = pairs.vectors.flip(1), 2 * pairs.products + lost
        status, unseen = pairs.status, pairs.unseen
        del pairs
        far, S, residuals = sides.other_vectors(near, generator)
        products += 2 * few
        if status in (Status.CONVERGED, Status.STAGNATED):
            good = residuals <= _tolerance(S, accuracy, A)
            if not bool(good.all()) and smaller <= _SMALL and max_products is None:
                near = sides.A.domain.units(0, smaller).T
                far, S, residuals = sides.other_vectors(near, generator)
                products, unseen = products + 2 * smaller, 0.0
        far, S, near, residuals = far[:, :few], S[:few], near[:, :few], residuals[:few]
        triplets = SingularTriplets(*((far, S / scale, near) if tall else (near, S / scale, far)))
        triplets.converged = residuals <= _tolerance(S, accuracy, A)
        rounding = (16 + 4 * few) * unit_roundoff(A) * float(S.max())
        triplets.residuals = (residuals + rounding) / scale
        triplets.products, triplets.unseen = products, unseen
        triplets.domain, triplets.codomain = A.domain, A.codomain
        triplets.status = Status.MAX_PRODUCTS if few < k else status
        if triplets.status in (Status.CONVERGED, Status.STAGNATED):
            is_good = bool(triplets.converged.all())
            triplets.status = Status.CONVERGED if is_good else Status.STAGNATED
        return triplets

    return with_usual_products(A, find)


def _tolerance(S: Tensor, rtol: float, A: LinearOperator) -> Tensor:
    """The largest residuals of converged triplets: relative, or at the rounding level."""
    return torch.clamp(rtol * S, min=16 * unit_roundoff(A) * float(S.max()))


class _Gram(LinearOperator):
    """A'A, which is symmetric whatever is known of A."""

    def __init__(self, sides: _Sides) -> None:
        super().__init__(sides.A.domain, symmetric=True)
        self.A, self.At = sides.A, sides.At

    def _matvec(self, v: Tensor) -> Tensor:
        return self.At._matvec(self.A._matvec(v))

    def _matmat(self, block: Tensor) -> Tensor:
        return self.At._matmat(self.A._matmat(block))

    def _expression(self) -> str:
        return f"{self.At._expression()} @ {self.A._expression()}"


@dataclass(frozen=True)
class _Sides:
    """The operator of which A'A is the smaller product, and its adjoint."""

    A: LinearOperator
    At: LinearOperator

    def other_vectors(
        self, near: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Orthonormal u, sigma, and |A'u - sigma v|, for the v in the span of `near`, in place.

        They are the singular triplets of A on that span: A V = Q R, and R is small. There
        A v = sigma u to rounding, which the squares in A'A hide below the root of eps.
        """
        space = self.A.codomain
        far = self.A._matmat(near).T.contiguous()
        R = torch.zeros(len(far), len(far), dtype=torch.float64)
        for i, u in enumerate(far):
            sigma = space.norm(u)
            R[:i, i], (rest,) = orthogonalise(space, [far[:i]], u)
            if rest > rounding_level(unit_roundoff(self.A), sigma):
                R[i, i] = rest
            else:  # any direction will do
                u.copy_(space.gaussian(generator))
                _, (rest,) = orthogonalise(space, [far[:i]], u)
            u /= rest
            _, (rest,) = orthogonalise(space, [far[:i]], u)
            u /= rest
        X, S, Yt = torch.linalg.svd(R)
        transform(far, X.T)
        transform(near.T, Yt)
        back = self.At._matmat(far.T) - S.to(near) * near
        residuals = self.A.domain.norms(*back.T.contiguous())
        return far.T, S, torch.tensor(residuals, dtype=torch.float64)


def _block_size(A: LinearOperator, v0: Tree | None, method: Lanczos) -> int:
    """Products with A'A that a step takes; `eigsh` says what is wrong with these arguments."""
    if isinstance(method.block_size, int):
        return method.block_size
    is_block = isinstance(v0, Tensor) and v0.ndim == 2 and not A.domain.is_point(v0)
    return max(1, v0.shape[1]) if isinstance(v0, Tensor) and is_block else 1


def _divide_products(
    max_products: int | None, k: int, block_size: int, lost: int
) -> tuple[int, int | None]:
    """How many triplets there are products for, and how many with A'A, less those at the end."""
    if max_products is None:
        return k, None
    half = (check_count("max_products", max_products, 2 * (block_size + 2)) - lost) // 2
    few = min(k, max(1, (half - block_size) // 2))
    return few, half - few
