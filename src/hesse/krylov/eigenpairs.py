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
from hesse.vectors.space import Space

Which = Literal["LA", "SA", "LM", "BE"]


class _Pairs(NamedTuple):
    values: Tensor
    """Eigenvalues, shape (k,), float64, ascending."""
    vectors: Tensor
    """Orthonormal eigenvectors, shape (n, k): column i belongs to values[i]."""
    residuals: Tensor
    """An eigenvalue of A lies within this of values[i], shape (k,): |A u - theta u|, verified, plus
    the rounding of a product. With a B it is |A u - theta B u| for u'B u = 1, and the bound is that
    times |B^-1|^(1/2)."""
    converged: Tensor
    """Whether each pair met its tolerance, shape (k,), bool."""
    products: int
    """Products with A."""


class Eigenpairs(Result, _Pairs):
    """(values, vectors, residuals, converged, products), values ascending; `status`, `unseen`.

    An eigenvalue of A lies within residuals[i] of values[i], converged or not; column i of
    `vectors`, (n, k), belongs to it. All but the vectors are float64 (k,), or bool.
    """

    status: Status
    """Why the iteration ended."""
    unseen: float | None
    """The probability that an eigenvalue which is wanted was not seen is at most this: 1 where the
    run ended before a search could tell, None where the method has no search."""
    domain: Space | None = None
    """The space of A, with which `hesse.low_rank_operator` makes an operator of the pairs."""

    def __new__(
        cls,
        values: Tensor,
        vectors: Tensor,
        residuals: Tensor,
        converged: Tensor,
        products: int,
        status: Status = Status.UNFINISHED,
        unseen: float | None = None,
    ) -> Eigenpairs:
        pairs = super().__new__(cls, values, vectors, residuals, converged, products)
        pairs.status, pairs.unseen = status, unseen
        return pairs

    def keys(self) -> list[str]:
        """The names of the fields."""
        return [*self._fields, "status", "unseen"]

    def scaled(self, factor: float, more: int) -> Eigenpairs:
        """The pairs of a multiple of A, after so many products more."""
        values, residuals = factor * self.values, factor * self.residuals
        count = self.products + more
        rest = (self.status, self.unseen)
        return Eigenpairs(values, self.vectors, residuals, self.converged, count, *rest)


@dataclass(frozen=True)
class Selection:
    """The wanted eigenvalues: k at these ends of the spectrum, to this relative accuracy."""

    k: int
    which: Which
    rtol: float
    eps: float

    def among(self, values: Tensor, k: int | None = None) -> Tensor:
        """Indices of the k wanted among ascending values, ascending."""
        return self.outermost(values, k).sort().values

    def outermost(self, values: Tensor, k: int | None = None) -> Tensor:
        """The same, the outermost first: those for fewer pairs come before the others."""
        last = len(values)
        k = min(self.k if k is None else k, last)
        if self.which == "LM":
            return values.abs().argsort()[last - k :].flip(0)
        low, high = torch.arange(k), torch.arange(last - 1, last - 1 - k, -1)
        if self.which == "BE":
            return torch.stack([high, low], dim=1).view(-1)[:k]
        return high if self.which == "LA" else low

    def ends(self, values: Tensor) -> Tensor:
        """Indices of the outermost of ascending values, at each wanted end."""
        return self.among(values, 2 if self.which == "BE" else 1)

    def edges(self, values: Tensor, margins: Tensor) -> Tensor:
        """Beyond these another value is wanted, if `values` are to within these margins."""
        if self.which == "LM":
            least = values.abs().argmin()
            edge = values[least].abs() + margins[least]
            return torch.stack([-edge, edge])
        low = {"LA": 0, "SA": self.k, "BE": self.k // 2}[self.which]
        return torch.cat([(values + margins)[low:][:1], (values - margins)[:low][-1:]])

    def tolerance(self, values: Tensor, largest: float, noise: float = 0.0) -> Tensor:
        """The largest residual that counts as converged: relative, or at the rounding level.

        That is 16 eps times the largest value, or four times the error of the products where that
        is known, but not more than the root of eps.
        """
        level = max(16 * self.eps * largest, min(4 * noise, self.eps**0.5 * largest))
        return torch.clamp(self.rtol * values.abs(), min=level)


class Ritz(NamedTuple):
    """Ritz pairs of a Lanczos process."""

    values: Tensor
    rows: Tensor
    residuals: Tensor
    largest: float
    """The largest Ritz value in magnitude."""
    rounding: float
    """What rounding may add to a residual."""
    lost: Tensor
    """What lost orthogonality may add to each residual; most of it is mostly not there."""


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

    For random signs s_i the residual of sum_i s_i w_i u_i has the mean square sum_i (w_i r_i)^2.
    The weights w_i are those that make the tolerances alike, or the residuals that exceed them. If
    it is larger than that of the known residuals, they are wrong, and every residual is recomputed.
    Those for which no product is left within `most` are infinite.
    """
    k, generator = len(found.values), torch.Generator().manual_seed(0)
    signs = 1.0 - 2.0 * torch.randint(2, (k,), generator=generator).double()
    tolerance = selection.tolerance(found.values, found.largest)
    scale = torch.maximum(tolerance, found.residuals)
    weights = signs * (float(scale.min()) / scale if float(scale.min()) > 0.0 else 1.0)
    mixed, expected = torch.stack([weights, weights * found.values]).to(found.rows) @ found.rows
    residual = expected.sub_(A._matvec(mixed))
    rounding, size = found.rounding * float(weights.norm()), A.domain.norm(residual)
    probable = torch.maximum(found.residuals, torch.minimum(found.lost, 0.5 * tolerance))
    if known and size <= 2 * float((weights * probable).norm()) + rounding:
        bounds = found.residuals + found.lost + found.rounding
        return Verified(found.values, bounds, found.residuals <= tolerance, 1)
    count = max(0, int(min(most - 1, k)))
    return _recomputed(A, found, selection, at_once, count, weights, residual)


def _recomputed(
    A: LinearOperator,
    found: Ritz,
    selection: Selection,
    at_once: int,
    count: int,
    weights: Tensor,
    residual: Tensor,
) -> Verified:
    """Rayleigh quotients and residuals from a product for each of the first rows.

    `residual`, in place, becomes the difference of sum_i w_i A u_i and A sum_i w_i u_i: the error
    of the products, below which no residual can be.
    """
    pairs = []
    for start in range(0, count, at_once):
        rows = found.rows[start : min(start + at_once, count)]
        products = A._matmat(rows.T).T if len(rows) > 1 else A._matvec(rows[0])[None]
        for i, (u, Au) in enumerate(zip(rows, products, strict=True), start):
            theta, weight = A.domain.inner(u, Au), float(weights[i])
            residual.add_(Au, alpha=weight).sub_(u, alpha=weight * float(found.values[i]))
            pairs.append((theta, A.domain.norm(Au - theta * u)))
    noise = 0.0
    if count == len(found.values):
        noise = A.domain.norm(residual) / (2.0**0.5 * float(weights.norm()))
    pairs += [(theta, math.inf) for theta in found.values[count:].tolist()]
    values, residuals = torch.tensor(pairs, dtype=torch.float64).T
    converged = residuals <= selection.tolerance(values, found.largest, noise)
    return Verified(values, residuals + max(found.rounding, noise), converged, 1 + count)
