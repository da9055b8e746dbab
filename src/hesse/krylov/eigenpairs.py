# SPDX-License-Identifier: Apache-2.0
"""Which eigenpairs are wanted, when they have converged, and the result that holds them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hesse.errors import Status
from hesse.operators.algebra import LinearOperator
from hesse.result import Result

Which = Literal["LA", "SA", "LM", "BE"]


class _Pairs(NamedTuple):
    values: Tensor
    """Eigenvalues, shape (k,), float64, ascending."""
    vectors: Tensor
    """Orthonormal eigenvectors, shape (n, k): column i belongs to values[i]."""
    residuals: Tensor
    """An eigenvalue of A lies within this of values[i], shape (k,): |A u - theta u|, verified, plus
    the rounding of a product."""
    converged: Tensor
    """Whether each pair met its tolerance, shape (k,), bool."""
    products: int
    """Products with A."""


class Eigenpairs(Result, _Pairs):
    """(values, vectors, residuals, converged, products), values ascending; also `status`.

    An eigenvalue of A lies within residuals[i] of values[i], converged or not; column i of
    `vectors`, (n, k), belongs to it. All but the vectors are float64 (k,), or bool.
    """

    status: Status
    """Why the iteration ended."""

    def __new__(
        cls,
        values: Tensor,
        vectors: Tensor,
        residuals: Tensor,
        converged: Tensor,
        products: int,
        status: Status = Status.UNFINISHED,
    ) -> Eigenpairs:
        pairs = super().__new__(cls, values, vectors, residuals, converged, products)
        pairs.status = status
        return pairs

    def keys(self) -> list[str]:
        """The names of the fields."""
        return [*self._fields, "status"]


@dataclass(frozen=True)
class Selection:
    """The wanted eigenvalues: k at these ends of the spectrum, to this relative accuracy."""

    k: int
    which: Which
    rtol: float
    eps: float

    def among(self, values: Tensor, k: int | None = None) -> Tensor:
        """Indices of the k wanted among ascending values, ascending."""
        last = len(values)
        k = min(self.k if k is None else k, last)
        if self.which == "LM":
            return values.abs().argsort()[last - k :].sort().values
        low = {"LA": 0, "SA": k, "BE": k // 2}[self.which]
        return torch.cat([torch.arange(low), torch.arange(last - (k - low), last)])

    def ends(self, values: Tensor) -> Tensor:
        """Indices of the outermost of ascending values, at each wanted end."""
        return self.among(values, 2 if self.which == "BE" else 1)

    def distance(self, others: Tensor, values: Tensor) -> Tensor:
        """How far other values are from being wanted, if `values` are."""
        if self.which == "LM":
            return values.abs().min() - others.abs()
        return (others[:, None] - values).abs().amin(dim=1)

    def tolerance(self, values: Tensor, largest: float) -> Tensor:
        """The largest residual that counts as converged: relative, or at the rounding level."""
        return torch.clamp(self.rtol * values.abs(), min=16 * self.eps * largest)


class Ritz(NamedTuple):
    """Ritz pairs of a Lanczos process, and the largest Ritz value in magnitude."""

    values: Tensor
    rows: Tensor
    residuals: Tensor
    largest: float


@dataclass
class Verified:
    """Values, residuals and convergence of Ritz vectors, and the products of the verification."""

    values: Tensor
    residuals: Tensor
    converged: Tensor
    products: int


def verify(
    A: LinearOperator, found: Ritz, selection: Selection, at_once: int, most: float, *, known: bool
) -> Verified:
    """The residuals of Ritz pairs, tested by one product if they are `known`.

    For random signs c_i the residual of sum_i c_i u_i has the mean square sum_i r_i^2. If it is
    larger than that of the known residuals, they are wrong, and every residual is recomputed. Those
    for which no product is left within `most` are infinite.
    """
    k, generator = len(found.values), torch.Generator().manual_seed(0)
    signs = 1.0 - 2.0 * torch.randint(2, (k,), generator=generator).double()
    mixed, expected = torch.stack([signs, signs * found.values]).to(found.rows) @ found.rows
    residual = A.domain.norm(expected.sub_(A._matvec(mixed)))
    rounding = 16 * selection.eps * found.largest
    if known and residual <= 2 * float(found.residuals.norm()) + rounding * k**0.5:
        converged = found.residuals <= selection.tolerance(found.values, found.largest)
        return Verified(found.values, found.residuals + rounding, converged, 1)
    return _recomputed(A, found, selection, at_once, max(0, int(min(most - 1, k))))


def _recomputed(
    A: LinearOperator, found: Ritz, selection: Selection, at_once: int, count: int
) -> Verified:
    """Rayleigh quotients and residuals from a product for each of the first rows."""
    pairs = []
    for start in range(0, count, at_once):
        rows = found.rows[start : min(start + at_once, count)]
        products = A._matmat(rows.T).T if len(rows) > 1 else A._matvec(rows[0])[None]
        for u, Au in zip(rows, products, strict=True):
            theta = A.domain.inner(u, Au)
            pairs.append((theta, A.domain.norm(Au - theta * u)))
    pairs += [(theta, math.inf) for theta in found.values[count:].tolist()]
    values, residuals = torch.tensor(pairs, dtype=torch.float64).T
    converged = residuals <= selection.tolerance(values, found.largest)
    rounding = 16 * selection.eps * found.largest
    return Verified(values, residuals + rounding, converged, 1 + count)
