# SPDX-License-Identifier: Apache-2.0
r"""The Lanczos recurrence alone: the matrix T of a starting vector, in the memory of three vectors.

$$ A v_j = \beta_{j-1} v_{j-1} + \alpha_j v_j + \beta_j v_{j+1} $$

Through rounding a converged eigenvalue is found again and again, and T then has copies of it. For
eigenvalues use `LanczosProcess`, which keeps the basis orthogonal. A quadrature does not need that:
T is the matrix of an exact process whose measure spreads the weight of each eigenvalue over a
cluster as narrow as rounding, so that sums and densities are those of A (Greenbaum 1989; decision
18).

References: Paige 1976, doi:10.1093/imamat/18.3.341 (the order of the operations); Greenbaum 1989,
doi:10.1016/0024-3795(89)90285-1; Knizhnerman 1996 (quadrature).
"""

from __future__ import annotations

from torch import Tensor

from hesse.krylov.lanczos_process import FIRST
from hesse.krylov.rounding import rounding_level, unit_roundoff
from hesse.krylov.symmetry import check_symmetry
from hesse.operators.algebra import LinearOperator


class Recurrence:
    """The entries of T so far, and the two vectors from which it goes on.

    Args:
        A: symmetric operator.
        v0: starting vector (n,), left as it is.
    """

    def __init__(self, A: LinearOperator, v0: Tensor) -> None:
        self.A = A
        self.following = v0 / A.domain.norm(v0)  # whose product is taken in next
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
        """The diagonal of T, and the entries below it."""
        return self.alpha, self.beta

    @property
    def is_invariant(self) -> bool:
        """Whether the products taken lie in the span of the vectors so far."""
        return self.size > 0 and self.beta[-1] == 0.0

    def take_in(self, w: Tensor) -> None:
        """w = A `following`, which is overwritten, becomes the next entries of T."""
        space = self.A.domain
        size, coupling = space.norm(w), self.beta[-1] if self.beta else 0.0
        self.largest = max(self.largest, size)
        if self.before is not None:
            # After a short residual the vectors are not orthogonal, and say nothing of symmetry.
            if self.size <= FIRST and coupling > unit_roundoff(self.A) ** 0.5 * self.largest:
                unexpected = abs(space.inner(self.before, w) - coupling)
                check_symmetry(self.A, unexpected, self.largest, unit_roundoff(self.A))
            w.add_(self.before, alpha=-coupling)
        self.alpha.append(space.inner(self.following, w))
        w.add_(self.following, alpha=-self.alpha[-1])
        rest = space.norm(w)
        is_rounding = rest <= rounding_level(unit_roundoff(self.A), self.largest)
        self.beta.append(0.0 if is_rounding else rest)
        if not is_rounding:
            self.before, self.following = self.following, w.div_(rest)
