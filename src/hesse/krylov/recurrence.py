# SPDX-License-Identifier: Apache-2.0
r"""The Lanczos recurrence alone: the matrix T of a starting vector, in the memory of three vectors.

$$ A v_j = \beta_{j-1} v_{j-1} + \alpha_j v_j + \beta_j v_{j+1} $$

Rounding makes an eigenvalue that has converged come back, again and again, and T then has copies
of it. Those who want eigenvalues take `Lanczos`, which keeps the basis and its orthogonality. A
quadrature does not need them: T is that of an exact process whose measure has each eigenvalue's
weight spread over a cluster as narrow as rounding, so that sums and densities are those of A
(Greenbaum 1989; decision 18).

References: Paige 1976, doi:10.1093/imamat/18.3.341 (the order of the operations); Greenbaum 1989,
doi:10.1016/0024-3795(89)90285-1; Knizhnerman 1996 (quadrature).
"""

from __future__ import annotations

from torch import Tensor

from hesse.krylov.lanczos import FIRST, check_symmetry, unit_roundoff
from hesse.operators.algebra import LinearOperator
from hesse.vectors.inner_products import norm


class Recurrence:
    """The entries of T so far, and the two vectors from which it goes on.

    Args:
        A: symmetric operator.
        v0: starting vector (n,), left as it is.
    """

    def __init__(self, A: LinearOperator, v0: Tensor) -> None:
        self.A = A
        self.following = v0 / norm(v0)  # whose product is taken in next
        self.before: Tensor | None = None
        self.alpha: list[float] = []
        self.beta: list[float] = []
        self.largest = 0.0

    @property
    def size(self) -> int:
        """Products taken in."""
        return len(self.alpha)

    @property
    def tridiagonal(self) -> tuple[list[float], list[float]]:
        """The diagonal of T, and what is beside it and leads on."""
        return self.alpha, self.beta

    @property
    def is_invariant(self) -> bool:
        """Whether the products stay within the span of the vectors so far."""
        return self.size > 0 and self.beta[-1] == 0.0

    def take_in(self, w: Tensor) -> None:
        """w = A `following`, which is overwritten, becomes the next entries of T."""
        size, coupling = norm(w), self.beta[-1] if self.beta else 0.0
        self.largest = max(self.largest, size)
        if self.before is not None:
            if self.size <= FIRST:
                unexpected = abs(self.A.domain.inner(self.before, w) - coupling)
                check_symmetry(self.A, unexpected, self.largest, unit_roundoff(self.A))
            w.add_(self.before, alpha=-coupling)
        self.alpha.append(self.A.domain.inner(self.following, w))
        w.add_(self.following, alpha=-self.alpha[-1])
        rest = norm(w)
        is_rounding = rest <= 10 * unit_roundoff(self.A) * self.largest
        self.beta.append(0.0 if is_rounding else rest)
        if not is_rounding:
            self.before, self.following = self.following, w.div_(rest)
