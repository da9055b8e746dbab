# SPDX-License-Identifier: Apache-2.0
"""The Lanczos process with partial re-orthogonalisation, from one starting vector or from several.

The basis is kept orthogonal to the square root of eps, which is what T needs to be right to eps:
no spurious copies of eigenvalues. A pass over the basis is taken where it is due, see
`orthogonality`. An invariant subspace is recognised and left by a random new direction. With b
starting vectors the matrix T has a band of b entries on each side, b products are taken at once,
and an eigenvalue is found with a multiplicity of up to b.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hesse.errors import NonFiniteError, OperatorError
from hesse.krylov.basis import Basis, orthonormalise
from hesse.krylov.gram_schmidt import KEPT
from hesse.krylov.orthogonality import Orthogonality
from hesse.operators.algebra import LinearOperator
from hesse.progress import uninterrupted
from hesse.vectors.inner_products import norm
from hesse.vectors.space import unshared

# Of a symmetric operator v_i'A v_j is known from v_j'A v_i. A difference of this share of the
# largest product is none of rounding, nor of products in bfloat16; nor, if it is of so many
# roundings, of a basis that is held in such a precision.
_ASYMMETRY, _ROUNDINGS = 0.02, 100

# So many products of each start are orthogonalised against all rows in any case: they show how
# large rounding is, and whether the operator is symmetric.
FIRST = 3

# Below this length of a vector a pass over the basis takes less time than to predict overlaps.
LONG = 1 << 12


class Lanczos:
    """A basis V (rows), orthonormal to sqrt(eps), with A V_j' = V' T_j for the first j = `size`.

    `size` rows have had their product; `rows` - `size` more, at most b, lead on from them, and the
    entries of T that couple those to the first are what A V_j' has outside of V_j'. What led on
    before the process was sent elsewhere (`explore`, `lock`) is `dropped`: its norm, row by row.

    Args:
        A: symmetric operator.
        m: how large the basis may become.
        v0: starting vector (n,), or block (n, b).
        generator: of new directions in an invariant subspace.
        basis: where the rows are held, at least m + b of them.
    """

    saved = (
        "used", "T", "size", "rows", "products", "largest", "dropped", "generator",
        "orthogonality", "due",
    )  # fmt: skip

    def __init__(
        self,
        A: LinearOperator,
        m: int,
        v0: Tensor,
        generator: torch.Generator | None,
        basis: Basis | None = None,
    ) -> None:
        start = v0[:, None] if v0.ndim == 1 else v0
        self.A, self.generator, self.b = A, generator, start.shape[1]
        self.basis = Basis(A, m + self.b) if basis is None else basis
        self.T = torch.zeros(m + self.b, m + self.b, dtype=torch.float64)
        self.predicts = self.basis.is_exact and A.shape[1] >= LONG
        self.orthogonality = Orthogonality(m + self.b if self.predicts else 0, self.basis.eps)
        self.dropped = torch.zeros(0, dtype=torch.float64)
        self.size = self.rows = self.products = 0
        self.due = FIRST * self.b
        self.largest = 0.0
        for v in start.T:
            self._append(v.clone())

    @property
    def used(self) -> Tensor:
        """The rows in use, for a checkpoint."""
        return self.basis.rows[: self.rows]

    @used.setter
    def used(self, rows: Tensor) -> None:
        self.basis.rows[: len(rows)] = rows

    @property
    def following(self) -> Tensor:
        """The row whose product is taken next."""
        return self.basis[self.size]

    @property
    def tridiagonal(self) -> tuple[list[float], list[float]]:
        """Of one starting vector: the diagonal of T, and what is beside it and leads on."""
        return self.T.diagonal()[: self.size].tolist(), self.T.diagonal(-1)[: self.size].tolist()

    @property
    def beta(self) -> float:
        """The norm of what the last product has outside the basis."""
        return float(self.T[self.size : self.rows, self.size - 1].norm())

    @property
    def is_invariant(self) -> bool:
        """Whether the products stay within the span of the rows that have had theirs."""
        return not bool(self.T[self.size : self.rows, : self.size].any()) and not len(self.dropped)

    def make_room(self, m: int) -> None:
        """Let the basis become as large as m."""
        size = m + self.b
        if size <= len(self.T):
            return
        grown = Basis(self.A, size, self.basis.rows.dtype, self.basis.rows.device)
        grown.rows[: self.rows] = self.used
        T = torch.zeros(size, size, dtype=torch.float64)
        T[: len(self.T), : len(self.T)] = self.T
        self.basis, self.T = grown, T
        if self.predicts:
            self.orthogonality.make_room(size)

    def extend(self, size: int) -> None:
        """Grow the basis to `size` vectors that have had their product."""
        while self.size < size:
            self.step(min(self.b, size - self.size))

    def step(self, count: int = 1) -> None:
        """Take the products of the next `count` rows at once, of fewer if fewer lead on."""
        j = self.size
        count = min(count, self.rows - j)
        if count == 1:
            v = self.following
            products = [unshared(self.A._matvec(v), v)]
        else:
            products = [w.clone() for w in self.A._matmat(self.basis.block(j, j + count)).T]
        self.products += count
        while products:
            with uninterrupted():
                self.take_in(products.pop(0))

    def take_in(self, w: Tensor) -> None:
        """The product of the next row becomes a column of T and a new row."""
        j = self.size
        h = self._remove_known(w, j)
        rest, scale = norm(w), float(h.norm())
        self.largest = max(self.largest, math.hypot(scale, rest))
        left = self._predicted(j, h)
        if left is None or self._needs_pass(left, rest):
            found, beta = self._append(w, scale)
            self._check_symmetry(found[:j])
            if left is None:
                h += found
            else:  # along earlier rows that is lost orthogonality, and no entry of T
                h[j:] += found[j:]
                self.orthogonality.learn(left[:, :j], found[:j], self.largest)
        else:
            self._add_row(w, rest, left / rest)
            beta = rest
        self.T[: len(h), j] = self.T[j, : len(h)] = h
        if beta is not None:
            self.T[len(h), j] = self.T[j, len(h)] = beta
        self.size += 1

    @property
    def passes_always(self) -> bool:
        """Whether overlaps cannot be predicted, or need not: rows rounded, let go, or short."""
        return not self.predicts or len(self.dropped) > 0

    def _predicted(self, j: int, h: Tensor) -> Tensor | None:
        """What A v_j without its components h may have along the rows."""
        if self.passes_always:
            return None
        return self.orthogonality.left(self.T, j, h, self.largest)

    def _needs_pass(self, left: Tensor, rest: float) -> bool:
        """Whether w of norm `rest` with these components must be orthogonalised against all rows.

        If so the next rows must be too: the recurrence goes on from both.
        """
        if self.due == 0 and not self.orthogonality.suffices(left, rest):
            self.due = 2 * self.b
        now = self.due > 0
        self.due = max(self.due - 1, 0)
        return now

    def _check_symmetry(self, unexpected: Tensor) -> None:
        """Raise if the last product has components along earlier rows that T does not know of."""
        if len(unexpected):
            worst, hidden = float(unexpected.abs().max()), float(self.dropped.sum())
            check_symmetry(self.A, worst, self.largest, self.basis.eps, hidden)

    def _remove_known(self, w: Tensor, j: int) -> Tensor:
        """Remove what w = A v_j has along rows that T says, and along v_j and those after it.

        Nearly nothing is then left along any row: as good as none, or one pass over the basis does.
        """
        h = torch.zeros(self.rows, dtype=torch.float64)
        least = self.basis.eps**0.5 * self.largest if self.passes_always else 0.0
        known = self.T[:j, j].abs() > least
        first = int(known.nonzero()[0]) if bool(known.any()) else j
        h[first:j] = self.T[first:j, j]
        self.basis.remove(w, h[first:j], first)
        for i in range(j, self.rows):
            h[i] = self.A.domain.inner(self.basis[i], w)  # to rounding: there may be no second look
        self.basis.remove(w, h[j:], j)
        return h

    def _append(self, w: Tensor, removed: float = 0.0) -> tuple[Tensor, float | None]:
        """Orthogonalise w (in place) and append it; its components, and the norm of the rest.

        Nothing is appended to a basis of the whole space. `removed`: what was taken from w before.
        """
        h, rest = self._orthogonalise(w)
        if self.rows == self.A.shape[1]:
            return h, None
        size = math.hypot(removed, float(h.norm()), rest)
        if rest <= 10 * self.basis.eps * max(size, self.largest):
            self._add_row(self._new_direction(), 1.0)
            return h, 0.0
        self._add_row(w, rest)
        return h, rest

    def _add_row(self, w: Tensor, length: float, overlaps: Tensor | None = None) -> None:
        """w / length becomes a row; without overlaps it is orthogonal to rounding."""
        self.basis.put(self.rows, w, length)
        if self.predicts:
            self.orthogonality.set(self.rows, overlaps)
        self.rows += 1

    def _orthogonalise(self, w: Tensor) -> tuple[Tensor, float]:
        """Remove from w its components along all rows: these, and the norm that is left."""
        h = self.basis.inners(w, self.rows)
        self.basis.remove(w, h)
        rest = norm(w)
        if self.rows and rest < KEPT * math.hypot(float(h.norm()), rest):
            correction = self.basis.inners(w, self.rows)
            self.basis.remove(w, correction)
            h, rest = h + correction, norm(w)
        return h, rest

    def _new_direction(self) -> Tensor:
        """A random direction outside an invariant subspace."""
        w = self.A.domain.gaussian(self.generator)
        w /= norm(w)
        _, rest = self._orthogonalise(w)
        return w / rest

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values (ascending), coordinates (columns), and residual norms."""
        if not bool(torch.isfinite(self.T).all()):
            raise NonFiniteError(
                f"Lanczos({self.A})",
                expected="finite products",
                got="NaN or Inf in a product",
                remedy="Check the operator with hesse.testing.check_operator.",
            )
        j = self.size
        values, coordinates = torch.linalg.eigh(self.T[:j, :j])
        outside = (self.T[j : self.rows, :j] @ coordinates).norm(dim=0)
        known = len(self.dropped)
        return values, coordinates, outside + self.dropped @ coordinates[:known].abs()

    def combine(self, coordinates: Tensor) -> Tensor:
        """V' coordinates, as rows."""
        return self.basis.combine(coordinates)

    def restart(self, coordinates: Tensor, values: Tensor) -> None:
        """Keep the Ritz vectors of these coordinates and values, and the rows that lead on.

        The better comes first: what a row has along better ones is lost orthogonality.
        """
        p, outside = len(values), self.T[self.size : self.rows, : self.size] @ coordinates
        self.dropped = self.dropped @ coordinates[: len(self.dropped)].abs()
        self.basis.rotate(coordinates, slice(self.size, self.rows))
        self.size, self.rows = p, p + len(outside)
        if self.predicts:
            orthonormalise(self.A, self.used)
            self.orthogonality.reset()
        self.T.zero_()
        self.T[:p, :p] = torch.diag(values)
        self.T[p : self.rows, :p] = outside
        self.T[:p, p : self.rows] = outside.T

    def lock(self, coordinates: Tensor, values: Tensor, start: Tensor) -> None:
        """After `explore`: keep these Ritz vectors, and begin anew from `start`, rows.

        Rows beyond those of the coordinates, found by exploring, are let go.
        """
        self.size = self.rows = len(coordinates)
        self.dropped = self.dropped[: self.size]
        self.restart(coordinates, values)
        for v in start[: self.A.shape[1] - self.rows]:
            self._append(v.clone())

    def explore(self) -> None:
        """Go on from random directions that know nothing of the rows so far.

        The rows that lead on are let go, but for the norm of what each product has along them.
        """
        p = self.size
        outside = self.T[p : self.rows, :p].norm(dim=0)
        outside[: len(self.dropped)] += self.dropped
        self.dropped = outside
        self.T[p:] = self.T[:, p:] = 0.0
        self.rows = p
        for _ in range(min(self.b, self.A.shape[1] - self.rows)):
            self._add_row(self._new_direction(), 1.0)


def unit_roundoff(A: LinearOperator) -> float:
    """eps of the operator's dtype."""
    return torch.finfo(A.dtype).eps


def check_symmetry(
    A: LinearOperator, difference: float, largest: float, eps: float, hidden: float = 0.0
) -> None:
    """Raise if v'A w and w'A v differ by more than rounding explains, and what may be hidden."""
    if difference > max(_ASYMMETRY, _ROUNDINGS * eps) * largest + hidden:
        raise OperatorError(
            f"Lanczos({A})",
            expected="a symmetric operator, as this one promises to be",
            got=f"v'A w and w'A v that differ by {difference:.3g}, for products of size "
            f"{largest:.3g}",
            remedy="Check it with hesse.testing.check_operator; leave out symmetric=True.",
        )
