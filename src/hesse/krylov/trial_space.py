# SPDX-License-Identifier: Apache-2.0
"""The trial space of a LOBPCG step: rows [X; P; W] with their images under A and B.

X are the best vectors so far, P the steps that led to them, W new directions. All are kept
B-orthonormal, so that the projected problem is an ordinary one and stays well conditioned
(Hetmaniuk & Lehoucq 2006). The memory of 3q rows and as many images is changed in place.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from hesse.errors import OperatorError
from hesse.krylov.rounding import rounding_level
from hesse.operators.algebra import LinearOperator
from hesse.operators.checks import check_finite_products
from hesse.vectors.rows import empty_rows, transform

# A step is dropped if its part outside of the new X is shorter than this.
_VANISHED = 1e-8


class Residuals(NamedTuple):
    """Of every u of X: theta = u'A u, |A u - theta B u|, |B u|, and the rounding of a residual."""

    values: Tensor
    norms: Tensor
    image_norms: Tensor
    rounding: Tensor


class TrialSpace:
    """V = [X; P; W], and A V and B V, q rows of each kind at most.

    Args:
        A: symmetric operator.
        B: of the inner product, symmetric positive definite; None for the usual one.
        q: rows of a block.
        eps: unit roundoff.
    """

    def __init__(self, A: LinearOperator, B: LinearOperator | None, q: int, eps: float) -> None:
        self.A, self.B, self.q, self.eps = A, B, q, eps
        self.x = self.p = self.w = self.products = 0
        self.A_norm = self.B_norm = 0.0  # from below
        self.V, self.AV = self._room(), self._room()
        self.BV = self.V if B is None else self._room()

    def _room(self) -> Tensor:
        space, size = self.A.domain, 3 * min(self.q, self.A.domain.n)
        return empty_rows(size, space.size, dtype=self.A.dtype, device=self.A.device)

    @property
    def known(self) -> int:
        """Rows of X and P."""
        return self.x + self.p

    @property
    def size(self) -> int:
        """Rows in use."""
        return self.x + self.p + self.w

    @property
    def new(self) -> Tensor:
        """The rows of W, to be written to."""
        return self.V[self.known : self.size]

    def put(self, W: Iterable[Tensor]) -> None:
        """Set W to these rows."""
        self.w = 0
        for row in W:
            self.V[self.size] = row
            self.w += 1
            del row  # before the next one comes

    def write_residuals(self) -> Residuals:
        """W becomes A u - theta B u for every u of X."""
        self.w, space = self.x, self.A.domain
        found = []
        for u, Au, Bu, r in zip(self.V[: self.x], self.AV, self.BV, self.new, strict=False):
            theta, length = space.inner(u, Au), space.norm(u)
            torch.add(Au, Bu, alpha=-theta, out=r)
            self.A_norm = max(self.A_norm, space.norm(Au) / length)
            self.B_norm = max(self.B_norm, space.norm(Bu) / length)
            found.append((theta, space.norm(r), space.norm(Bu), length))
        values, norms, image_norms, lengths = torch.tensor(found, dtype=torch.float64).T
        scale = self.A_norm + values.abs() * self.B_norm
        return Residuals(values, norms, image_norms, 16 * self.eps * scale * lengths)

    def keep(self, chosen: Tensor) -> None:
        """Keep these rows of W."""
        W = self.new
        for i, j in enumerate(chosen.nonzero()[:, 0].tolist()):
            if i != j:
                W[i] = W[j]
        self.w = int(chosen.sum())

    def expand(self) -> None:
        """Make W orthonormal, and orthogonal to X and P, and take its products."""
        if self.known >= self.A.domain.n:
            self.w = 0  # what is left outside of the whole space is rounding
        for _ in range(2):  # twice is enough
            self._normalise()
            self._remove_known()
            self._orthonormalise()
        self._take_products(slice(self.known, self.size))

    def _remove_known(self) -> None:
        if self.w and self.known:
            along = self.A.domain.gram(self.BV[: self.known], self.new)
            self.new.addmm_(along.T.to(self.V), self.V[: self.known], alpha=-1.0)
            left = torch.tensor(self.A.domain.norms(*self.new))
            self.keep(left > 100 * self.eps)

    def _normalise(self) -> None:
        """Rows of W of unit length; the squares of their entries might over- or underflow."""
        for sizes in (self.A.domain.largest, self.A.domain.norms):
            for row, size in zip(self.new, sizes(*self.new), strict=True):
                row /= size or 1.0

    def _orthonormalise(self) -> None:
        """B-orthonormal rows of the span of W; directions that vanish are dropped."""
        space = self.A.domain
        self._normalise()
        if self.w:
            values, vectors = torch.linalg.eigh(space.gram(self.new, self.new))
            good = values > 100 * self.eps * float(values.abs().max())
            transform(self.new, (vectors[:, good] / values[good].sqrt()).T)
            self.w = int(good.sum())
        if self.B is None or self.w == 0:
            return
        images = self.BV[self.known : self.size]
        self._multiply_by_mass(self.new, images)
        values, vectors = torch.linalg.eigh(space.gram(self.new, images))
        self.B_norm = max(self.B_norm, float(values.abs().max()))
        check_positive(float(values[0]), self.B_norm, self.eps)
        for rows in (self.new, images):
            transform(rows, (vectors / values.sqrt()).T)

    def _multiply_by_mass(self, rows: Tensor, images: Tensor) -> None:
        if self.B is not None and len(rows):
            images.copy_(check_finite_products(self.B, self.B._matmat(rows.T)).T)

    def _take_products(self, chosen: slice) -> None:
        rows = self.V[chosen]
        if len(rows) == 0:
            return
        self.products += len(rows)
        products = check_finite_products(self.A, self.A._matmat(rows.T))
        self.AV[chosen].copy_(products.T)

    def choose(self, C: Tensor) -> None:
        """X becomes the rows with these coordinates (columns), P the steps to them from X.

        P is what is left of X' - X orthogonal to X', in coordinates, which are orthonormal.
        """
        steps = C.clone()
        steps[: self.x] = 0.0
        steps -= C @ (C.T @ steps)
        U, sizes, _ = torch.linalg.svd(steps, full_matrices=False)
        U = U[:, sizes > _VANISHED]
        S = torch.cat([C, U], dim=1).T
        for rows in self._each(self.V, self.AV, self.BV):
            transform(rows[: self.size], S)
        self.x, self.p, self.w = C.shape[1], U.shape[1], 0

    def projected(self) -> tuple[Tensor, Tensor]:
        """Ritz values, ascending, and the coordinates of their vectors (columns)."""
        H = self.A.domain.gram(self.V[: self.size], self.AV[: self.size])
        return torch.linalg.eigh((H + H.T) / 2)

    def recompute_images(self) -> None:
        """Recompute the images of X, in which rounding errors of the combinations add up.

        X is made orthonormal again before.
        """
        X, BX = self.V[: self.x], self.BV[: self.x]
        self._multiply_by_mass(X, BX)
        S = torch.linalg.inv(torch.linalg.cholesky(self.A.domain.gram(X, BX)))
        for rows in self._each(X, BX):
            transform(rows, S)
        self._take_products(slice(0, self.x))

    def narrow(self, chosen: Tensor) -> None:
        """Keep these rows of X, ascending, and nothing else."""
        for i, j in enumerate(chosen.tolist()):
            if i != j:
                self.V[i] = self.V[j]
        self.x, self.p, self.w = len(chosen), 0, 0

    def _each(self, V: Tensor, *images: Tensor) -> list[Tensor]:
        """V and the images that have memory of their own."""
        return [V, *(rows for rows in images if rows.data_ptr() != V.data_ptr())]


def check_positive(least: float, largest: float, eps: float) -> None:
    """Raise unless the least u'B u for |u| = 1 is positive by more than rounding of |B|."""
    if least > rounding_level(eps, largest):
        return
    raise OperatorError(
        expected="a positive definite B",
        got=f"u'B u = {least:.3g} for some u with |u| = 1, beside |B| >= {largest:.3g}",
        remedy="Shift B by a multiple of the identity. Or, if A is positive definite, exchange A "
        "and B: the eigenvalues are then the inverse ones.",
    )
