# SPDX-License-Identifier: Apache-2.0
"""The Lanczos process with full re-orthogonalisation.

The basis is orthogonalised against itself in full, twice, at every step: no spurious copies of
eigenvalues, and an invariant subspace is recognised and left by a random new direction, so that
multiple eigenvalues are found with their multiplicity.
"""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from hesse.errors import NonFiniteError
from hesse.operators.base import LinearOperator
from hesse.vectors import gaussian, norm


class Lanczos:
    """An orthonormal basis V (rows) with T = V A V', grown one product at a time.

    `beta` is the norm of what A v_m has outside the basis, whose direction is row `size` of V.
    """

    def __init__(
        self, A: LinearOperator, m: int, v0: Tensor, generator: torch.Generator | None
    ) -> None:
        self.A, self.generator = A, generator
        self.V = torch.empty(m + 1, v0.numel(), dtype=v0.dtype, device=v0.device)
        self.V[0] = v0 / norm(v0)
        self.T = torch.zeros(m, m, dtype=torch.float64)
        self.size, self.products = 0, 0
        self.beta, self.largest = 0.0, 0.0

    def extend(self, size: int, bar: tqdm | None = None) -> None:
        """Grow the basis to `size` vectors."""
        while self.size < size:
            self._step()
            if bar is not None:
                bar.update()

    def _step(self) -> None:
        j = self.size
        w = self.A._matvec(self.V[j])
        self.products += 1
        self.largest = max(self.largest, norm(w))
        w, h = self._orthogonalised(w, j + 1)
        self.T[: j + 1, j] = self.T[j, : j + 1] = h
        self.beta = norm(w)
        if self.beta <= 10 * unit_roundoff(self.A) * self.largest:
            self.beta, w = 0.0, self._new_direction(j + 1)
        w_norm = norm(w)
        self.V[j + 1] = w / w_norm if w_norm > 0.0 else w
        self.size = j + 1

    def _orthogonalised(self, w: Tensor, j: int) -> tuple[Tensor, Tensor]:
        """w without its components in the first j rows, and these. Twice is enough: Parlett 6.9."""
        basis = self.V[:j]
        h = self.A.inners(basis, w)
        w = w - h @ basis
        correction = self.A.inners(basis, w)
        w = w - correction @ basis
        return w, (h + correction).to("cpu", torch.float64)

    def _new_direction(self, j: int) -> Tensor:
        """A random direction outside an invariant subspace; zero if the subspace is everything."""
        if j == self.A.shape[0]:
            return torch.zeros_like(self.V[0])
        w, _ = self._orthogonalised(gaussian(self.A.domain, self.generator), j)
        return self._orthogonalised(w / norm(w), j)[0]

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values (ascending), coordinates (columns), and residual norms."""
        if not bool(torch.isfinite(self.T).all()):
            raise NonFiniteError(
                f"Lanczos({self.A})",
                expected="finite products",
                got="NaN or Inf in a product",
                remedy="Check the operator with hesse.testing.check_operator.",
            )
        values, coordinates = torch.linalg.eigh(self.T[: self.size, : self.size])
        return values, coordinates, self.beta * coordinates[-1].abs()

    def combine(self, coordinates: Tensor) -> Tensor:
        """V' coordinates, as rows."""
        return coordinates.T.to(self.V) @ self.V[: self.size]

    def restart(self, coordinates: Tensor, values: Tensor, chosen: Tensor) -> None:
        """Keep the chosen Ritz vectors and the direction that leads out of the basis."""
        p = len(chosen)
        self.V[:p] = self.combine(coordinates[:, chosen])
        self.V[p] = self.V[self.size]
        self.T.zero_()
        self.T[:p, :p] = torch.diag(values[chosen])
        self.size = p


def unit_roundoff(A: LinearOperator) -> float:
    """eps of the operator's dtype."""
    return torch.finfo(A.dtype).eps
