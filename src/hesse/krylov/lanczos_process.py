# SPDX-License-Identifier: Apache-2.0
"""The Lanczos process with partial re-orthogonalisation, from one starting vector or from several.

The basis is kept orthogonal to the square root of eps. T is then right to eps, and has no spurious
copies of eigenvalues. A pass over the basis is taken only where it is needed, see `orthogonality`.
In an invariant subspace the process continues with a random direction outside of it. With b
starting vectors the matrix T has a band of b entries on each side, b products are taken at once,
and an eigenvalue is found with a multiplicity of up to b.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import pad

from hesse.errors import NonFiniteError
from hesse.krylov.basis import Basis, orthonormalise
from hesse.krylov.hidden import Hidden
from hesse.krylov.orthogonality import Orthogonality
from hesse.krylov.rounding import rounding_level
from hesse.krylov.starting_block import random_start
from hesse.krylov.symmetry import check_symmetry
from hesse.krylov.unseen import Unseen
from hesse.operators.algebra import LinearOperator
from hesse.progress import uninterrupted
from hesse.vectors.space import unshared

# The first products of each starting vector are always orthogonalised against all rows: that
# measures the rounding errors, and shows whether the operator is symmetric.
FIRST = 3

# T has so many rows at first, and grows when it must.
_FIRST_SIZE = 128

# For shorter vectors a pass over the basis takes less time than the prediction of overlaps.
LONG = 1 << 12


class LanczosProcess:
    """A basis V (rows), orthonormal to sqrt(eps), with A V_j' = V' T_j for the first j = `size`.

    The products of `size` rows were taken; `rows` - `size` more rows wait for theirs: b at first,
    and b more after every `explore`. The entries of T that couple the two are the components of
    A V_j' outside of V_j'. Where there is no memory for so many, `drop` gives up the rows that
    wait; `hidden` is what the products have along them. `lost` is what a pass over the basis has
    removed from each product, the columns, along earlier rows.

    Args:
        A: symmetric operator.
        m: how large the basis may become.
        v0: starting vector (n,), or block (n, b).
        generator: of new directions in an invariant subspace.
        basis: where the rows are held, at least m + b of them.
    """

    saved = (
        "used", "T", "size", "rows", "products", "largest", "hidden", "lost", "lost_before",
        "restarts", "explored", "unseen", "asymmetry", "generator", "orthogonality", "due",
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
        size = min(m + self.b, _FIRST_SIZE)
        self.T = torch.zeros(size, size, dtype=torch.float64)
        self.predicts = self.basis.is_exact and A.domain.n >= LONG
        self.orthogonality = Orthogonality(m + self.b if self.predicts else 0, self.basis.eps)
        self.hidden, self.lost_before = Hidden(), Hidden()
        self.lost = torch.zeros_like(self.T)
        self.asymmetry = torch.zeros(2, dtype=torch.float64)  # the sum of squares, and of how many
        self.restarts, self.explored, self.unseen = 0, False, Unseen()
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
    def is_consistent(self) -> bool:
        """Whether the counts are those of rows and of T: from a file they may be anything."""
        counts = 0 <= self.size <= self.rows <= min(len(self.T), len(self.basis.rows))
        return counts and self.T.shape == self.lost.shape == (len(self.T), len(self.T))

    @property
    def following(self) -> Tensor:
        """The row whose product is taken next."""
        return self.basis[self.size]

    @property
    def tridiagonal(self) -> tuple[list[float], list[float]]:
        """For one starting vector: the diagonal of T, and the entries below it."""
        return self.T.diagonal()[: self.size].tolist(), self.T.diagonal(-1)[: self.size].tolist()

    @property
    def beta(self) -> float:
        """The norm of what the last product has outside the basis."""
        return float(self.T[self.size : self.rows, self.size - 1].norm())

    @property
    def is_invariant(self) -> bool:
        """Whether the products taken lie in the span of their rows."""
        return not bool(self.T[self.size : self.rows, : self.size].any()) and not self.hidden.count

    @property
    def is_whole(self) -> bool:
        """Whether the products of a basis of the whole space were taken."""
        return self.size == self.A.domain.n

    @property
    def waiting(self) -> int:
        """How many rows wait for their products."""
        return self.rows - self.size

    @property
    def free(self) -> int:
        """For how many more rows there is memory."""
        return len(self.basis.rows) - self.rows

    @property
    def roundings(self) -> int:
        """How many roundings of the largest product may add up in a residual.

        Each restart adds one, and each row that is not orthogonal to rounding some.
        """
        return 16 + self.restarts + (self.size if self.predicts else 0)

    @property
    def value_noise(self) -> float:
        """How far rounding in the products may move a Ritz value: v'A w - w'A v shows it."""
        squares, count = self.asymmetry.tolist()
        return 4.0 * math.sqrt(squares / max(count, 1.0) * max(self.size, 1))

    def make_room(self, m: int) -> None:
        """Let the basis become as large as m."""
        size = m + self.b
        if size > len(self.basis.rows):
            grown = Basis(self.A, size, self.basis.rows.dtype, self.basis.rows.device)
            grown.rows[: self.rows] = self.used
            self.basis = grown
        if self.predicts:
            self.orthogonality.make_room(size)

    def extend(self, size: int) -> None:
        """Take steps until the products of `size` rows are taken."""
        while self.size < size:
            self.step(min(self.b, size - self.size))

    def step(self, count: int = 1) -> None:
        """Take the products of the next `count` rows at once, or of all that follow if fewer."""
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
        h, rest = self._remove_known(w, j)
        left = self._predicted(j, h)
        if left is None or self._needs_pass(left, rest):
            found, beta = self._append(w, float(vector_norm(h)))
            if left is None:
                h += found
                self._check_symmetry(h[:j] - self.T[:j, j])
            else:  # along earlier rows that is lost orthogonality, and no entry of T
                h[j:] += found[j:]
                self.lost[:j, j] = found[:j]
                self._check_symmetry(found[:j])
                self.orthogonality.learn(left[:, :j], found[:j], self.largest)
        else:
            beta = self.A.domain.norm(w)
            self._add_row(w, beta, left / beta)
        self.T[: len(h), j] = self.T[j, : len(h)] = h
        if beta is not None:
            self.T[len(h), j] = self.T[j, len(h)] = beta
        self.unseen.extend(j, h, beta)
        self.size += 1

    @property
    def passes_always(self) -> bool:
        """Whether overlaps are not predicted: rows are rounded, short, or in another order."""
        return not self.predicts or self.explored

    def _predicted(self, j: int, h: Tensor) -> Tensor | None:
        """Possible components along the rows of A v_j without its components h."""
        if self.passes_always:
            return None
        return self.orthogonality.left(self.T, j, h, self.largest)

    def _needs_pass(self, left: Tensor, rest: float) -> bool:
        """Whether w of norm `rest` with these components must be orthogonalised against all rows.

        If so the next rows must be too: the recurrence continues from both.
        """
        if self.due == 0 and not self.orthogonality.suffices(left, rest):
            self.due = 2 * self.b
        now = self.due > 0
        self.due = max(self.due - 1, 0)
        return now

    def _check_symmetry(self, unexpected: Tensor) -> None:
        """Raise if the last product has components along earlier rows that are not in T.

        What was dropped explains as much as the product of that row had along it.
        """
        if len(unexpected) == 0:
            return
        beyond = unexpected.abs()
        if self.hidden.count:
            beyond -= self.hidden.bounds(torch.eye(len(unexpected), dtype=torch.float64))
        else:
            self.asymmetry[0] += unexpected.square().sum()
            self.asymmetry[1] += len(unexpected)
        check_symmetry(self.A, float(beyond.max()), self.largest, self.basis.eps)

    def _remove_known(self, w: Tensor, j: int) -> tuple[Tensor, float]:
        """Remove from w = A v_j the components that T gives, and those along v_j and later rows.

        The components that are left are negligible, or one pass over the basis removes them.
        Returns the components, and a norm that the rest of w has at least.
        """
        h = torch.zeros(self.rows, dtype=torch.float64)
        least = self.basis.eps**0.5 * self.largest if self.passes_always else 0.0
        known = self.T[:j, j].abs() > least
        first = int(known.nonzero()[0]) if bool(known.any()) else j
        h[first:j] = self.T[first:j, j]
        self.basis.remove(w, h[first:j], first)
        # Accurate: there may be no second pass.
        h[j:], length = self.basis.measure(w, range(j, self.rows))
        self.basis.remove(w, h[j:], j)
        self.largest = max(self.largest, math.hypot(float(vector_norm(h[:j])), length))
        share = float(vector_norm(h[j:])) / length if length > 0.0 else 0.0
        doubt = 8 * (self._overlap if self.b > 1 else self.basis.eps)
        return h, length * math.sqrt(max(1.0 - share**2 - doubt, 0.0))

    @property
    def _overlap(self) -> float:
        """How far the rows are from orthonormal."""
        return self.basis.eps**0.5 if self.predicts else self.basis.eps

    def _append(self, w: Tensor, removed: float = 0.0) -> tuple[Tensor, float | None]:
        """Orthogonalise w (in place) and append it; its components, and the norm of the rest.

        Nothing is appended to a basis of the whole space. If w vanishes a random direction takes
        its place, unless the process has explored and another row waits. `removed` is the norm of
        the components that were removed from w before.
        """
        h, rest = self.basis.orthogonalise(w, self.rows, self._overlap)
        if self.rows == self.A.domain.n:
            return h, None
        size = math.hypot(removed, float(vector_norm(h)), rest)
        if rest <= rounding_level(self.basis.eps, max(size, self.largest)):
            if self.explored and self.waiting > 1:
                return h, None
            self._add_row(self._new_direction(), 1.0)
            return h, 0.0
        self._add_row(w, rest)
        return h, rest

    def _add_row(self, w: Tensor, length: float, overlaps: Tensor | None = None) -> None:
        """w / length becomes a row; without overlaps it is orthogonal to rounding."""
        if self.rows == len(self.T):
            more = min(2 * self.rows, len(self.basis.rows)) - self.rows
            self.T, self.lost = (pad(X, (0, more, 0, more)) for X in (self.T, self.lost))
        self.basis.put(self.rows, w, length)
        if self.predicts:
            self.orthogonality.set(self.rows, overlaps)
        self.rows += 1

    def _new_direction(self) -> Tensor:
        """A random direction outside an invariant subspace."""
        w = random_start(self.A, self.generator)
        w /= self.A.domain.norm(w)
        _, rest = self.basis.orthogonalise(w, self.rows, self._overlap)
        return w / rest

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values (ascending), coordinates (columns), and residual norms.

        They are without what is hidden after a `drop`.
        """
        if not bool(torch.isfinite(self.T[: self.rows, : self.rows]).all()):
            raise NonFiniteError(
                expected="finite products",
                got="NaN or Inf in a product",
                remedy="Check the operator with hesse.testing.check_operator.",
            )
        j = self.size
        values, coordinates = torch.linalg.eigh(self.T[:j, :j])
        return values, coordinates, (self.T[j : self.rows, :j] @ coordinates).norm(dim=0)

    def lost_orthogonality(self, coordinates: Tensor) -> Tensor:
        """What lost orthogonality may add to the residuals of Ritz vectors of these coordinates."""
        lost = (self.lost[:, : len(coordinates)] @ coordinates).norm(dim=0)
        return lost + self.lost_before.bounds(coordinates)

    def combine(self, coordinates: Tensor) -> Tensor:
        """V' coordinates, as rows."""
        return self.basis.combine(coordinates)

    def restart(self, coordinates: Tensor, values: Tensor) -> None:
        """Keep the Ritz vectors of these coordinates and values, and the rows that wait.

        The best come first: a component of a row along a better one is lost orthogonality.
        """
        p, outside = len(values), self.T[self.size : self.rows, : self.size] @ coordinates
        self.restarts += 1
        self.hidden.rotate(coordinates)
        self.lost_before.rotate(coordinates)
        self.unseen.rotate(coordinates)
        if bool(self.lost.any()):
            self.lost_before.add(self.lost[:, : self.size] @ coordinates)
            self.lost.zero_()
        self.basis.rotate(coordinates, slice(self.size, self.rows))
        self.size, self.rows = p, p + len(outside)
        if self.predicts:
            removed = orthonormalise(self.A, self.used)[:, :p]
            self.orthogonality.reset()
            lost = removed[:p].T * (values - values[:, None]) + removed[p:].T @ outside
            self.lost_before.add(lost)
        self.T.zero_()
        self.T[:p, :p] = torch.diag(values)
        self.T[p : self.rows, :p] = outside
        self.T[:p, p : self.rows] = outside.T

    def compress(self, coordinates: Tensor) -> None:
        """As `restart` for orthonormal coordinates that are not those of Ritz vectors.

        What the products have along the directions that are given up is hidden.
        """
        T = self.T[: self.size, : self.size]
        projected = coordinates.T @ T @ coordinates
        lost = T @ coordinates - coordinates @ projected
        self.restart(coordinates, projected.diagonal())
        self.T[: len(projected), : len(projected)] = projected
        if float(lost.abs().max()) > rounding_level(self.basis.eps, self.largest):
            self.hidden.add(lost)

    def explore(self, edges: Tensor) -> None:
        """Add random directions outside of all rows, to see an eigenvalue beyond these edges.

        There are as many as a block has; `unseen` says how likely it is that one was not seen.
        """
        self.explored, old, n = True, self.rows, self.A.domain.n
        for _ in range(min(self.b, n - old)):
            self._add_row(self._new_direction(), 1.0)
        self.unseen.begin(edges, old, self.rows - old, n)

    def bring_forward(self, chosen: list[int]) -> None:
        """Let these rows, numbered among those that wait, ascending, be the next ones."""
        for i, j in enumerate(chosen):
            if i != j:
                first, second = self.size + i, self.size + j
                self.basis.swap(first, second)
                self.T[[first, second]] = self.T[[second, first]]
                self.T[:, [first, second]] = self.T[:, [second, first]]
                self.unseen.swap(first, second)

    def drop(self) -> None:
        """Give up the rows that wait; what the products have along them is hidden."""
        self.hidden.add(self.T[self.size : self.rows, : self.size])
        self.T[self.size :] = self.T[:, self.size :] = 0.0
        self.rows = self.size
        self.unseen.drop(self.rows)

    def lock(self, coordinates: Tensor, start: Tensor) -> None:
        """Keep these vectors, drop the rows that wait, and continue from the rows `start`."""
        self.compress(coordinates)
        self.drop()
        self.unseen = Unseen()
        for v in start[: self.A.domain.n - self.rows]:
            self._append(v.clone())
