# SPDX-License-Identifier: Apache-2.0
"""The trial space of a LOBPCG step: rows [X; P; W] with their images under A and B.

X are the best vectors so far, P the steps that led to them, W new directions. All are kept
B-orthonormal, so that the projected problem is an ordinary one and stays well conditioned
(Hetmaniuk & Lehoucq 2006). The memory of 3q rows and as many images is changed in place.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hesse.errors import OperatorError
from hesse.operators.algebra import LinearOperator
from hesse.operators.checks import check_finite_products
from hesse.vectors.rows import empty_rows, transform

# A step is dropped if its part outside of the new X is shorter than this.
_VANISHED = 1e-8


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

    def write_residuals(self) -> tuple[Tensor, Tensor, Tensor]:
        """W becomes A u - theta B u for every u of X: theta, the norms, and those of B u."""
        self.w, space = self.x, self.A.domain
        found = []
        for u, Au, Bu, r in zip(self.V[: self.x], self.AV, self.BV, self.new, strict=False):
            theta = space.inner(u, Au)
            torch.add(Au, Bu, alpha=-theta, out=r)
            found.append((theta, space.norm(r), space.norm(Bu)))
        values, norms, lengths = torch.tensor(found, dtype=torch.float64).reshape(-1, 3).T
        return values, norms, lengths

    def keep(self, chosen: Tensor) -> None:
        """Keep these rows of W."""
        W = self.new
        for i, j in enumerate(chosen.nonzero()[:, 0].tolist()):
            if i != j:
                W[i] = W[j]
        self.w = int(chosen.sum())

    def expand(self) -> None:
        """Make W orthonormal, and orthogonal to X and P, and take its products."""
        for _ in range(2):  # twice is enough
            self._remove_known()
            self._orthonormalise()
        self._take_products(slice(self.known, self.size))

    def _remove_known(self) -> None:
        if self.w and self.known:
            along = self.A.domain.gram(self.BV[: self.known], self.new)
            self.new.addmm_(along.T.to(self.V), self.V[: self.known], alpha=-1.0)

    def _orthonormalise(self) -> None:
        """B-orthonormal rows of the span of W; directions that vanish are dropped."""
        if self.w == 0:
            return
        for row in self.new:
            row /= self.A.domain.norm(row) or 1.0
        images = self.BV[self.known : self.size]
        self._multiply_by_mass(self.new, images)
        values, vectors = torch.linalg.eigh(self.A.domain.gram(self.new, images))
        rounding = 100 * self.eps * float(values.abs().max())
        self._check_positive(float(values[0]), rounding)
        good = values > rounding
        S = (vectors[:, good] / values[good].sqrt()).T
        for rows in self._each(self.new, images):
            transform(rows, S)
        self.w = len(S)

    def _multiply_by_mass(self, rows: Tensor, images: Tensor) -> None:
        if self.B is not None and len(rows):
            images.copy_(self.B._matmat(rows.T).T)

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
        """Recompute the images of X, in which rounding errors of the combinations add up."""
        self._take_products(slice(0, self.x))
        self._multiply_by_mass(self.V[: self.x], self.BV[: self.x])

    def narrow(self, chosen: Tensor) -> None:
        """Keep these rows of X, ascending, and nothing else."""
        for i, j in enumerate(chosen.tolist()):
            if i != j:
                self.V[i] = self.V[j]
        self.x, self.p, self.w = len(chosen), 0, 0

    def _each(self, V: Tensor, *images: Tensor) -> list[Tensor]:
        """V and the images that have memory of their own."""
        return [V, *(rows for rows in images if rows.data_ptr() != V.data_ptr())]

    def _check_positive(self, least: float, rounding: float) -> None:
        if least < -rounding:
            raise OperatorError(
                expected="a positive definite B",
                got=f"u'B u = {least:.3g} for some u with |u| <= 1",
                remedy="Shift B by a multiple of the identity, or exchange A and B.",
            )
