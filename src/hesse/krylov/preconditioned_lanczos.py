# SPDX-License-Identifier: Apache-2.0
r"""The Lanczos process in the inner product of a preconditioner.

$$ A Z = V T + \beta v_{j+1} e_j^T, \qquad Z = M V, \qquad Z^T V = I, \qquad T = Z^T A Z $$

Steps are Z h, whose length in the norm of M^-1 is |h|. M^-1 itself is not needed, but both V and Z
are kept, and every product is orthogonalised against all of them.

References: Gould, Lucidi, Roma & Toint 1999, doi:10.1137/S1052623497322735, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from hesse.krylov.basis import Basis
from hesse.krylov.rounding import rounding_level, unit_roundoff
from hesse.krylov.system import System
from hesse.vectors.space import unshared


class PreconditionedLanczos:
    """Z and V after `size` products, and one more row of each, whose product is taken next.

    Args:
        system: A, M, and -b = g, whose Krylov space it is.
        m: rows at first; the basis grows.
        memory: the rows of Z and V of another process, which is not used any more.
    """

    def __init__(self, system: System, m: int, memory: Sequence[Tensor] = ()) -> None:
        self.system, self.A = system, system.A
        Z, V = memory or (None, None)
        self.basis = Basis(self.A, m + 1, memory=Z)
        self.duals = Basis(self.A, m + 1, memory=V)
        self.T = torch.zeros(m + 1, m + 1, dtype=torch.float64)
        self.size, self.beta = 0, 0.0
        g = -system.b
        z = system.precondition(g)
        self.start_norm = math.sqrt(system.preconditioned_inner(g, z))
        self._put(0, z, g, self.start_norm)

    @property
    def is_invariant(self) -> bool:
        """Whether the products taken lie in the span of V."""
        return self.size > 0 and self.beta == 0.0

    def make_room(self, m: int) -> None:
        """Let the basis become as large as m."""
        more = m + 1 - len(self.T)
        if more <= 0:
            return
        for name in ("basis", "duals"):
            old = getattr(self, name)
            if m + 1 > len(old.rows):
                grown = Basis(self.A, m + 1)
                grown.rows[: self.size + 1] = old.rows[: self.size + 1]
                setattr(self, name, grown)
        self.T = pad(self.T, (0, more, 0, more))

    def step(self) -> None:
        """Take the product of the next row, unless the space is invariant."""
        j, z = self.size, self.basis[self.size]
        w = unshared(self.A._matvec(z), z)
        before = self.A.domain.norm(w)
        h = self._remove(w, j + 1)
        h += self._remove(w, j + 1)
        self.T[: j + 1, j] = self.T[j, : j + 1] = h
        self.size, self.beta = j + 1, 0.0
        if self.A.domain.norm(w) <= rounding_level(unit_roundoff(self.A), before):
            return
        y = self.system.precondition(w)
        self.beta = math.sqrt(self.system.preconditioned_inner(w, y))
        self._put(j + 1, y, w, self.beta)
        self.T[j + 1, j] = self.T[j, j + 1] = self.beta

    def combine(self, coordinates: Tensor) -> Tensor:
        """Z coordinates, as rows."""
        return self.basis.combine(coordinates)

    def _remove(self, w: Tensor, count: int) -> Tensor:
        """w - V Z'w in place, and Z'w."""
        h = self.basis.inners(w, count)
        self.duals.remove(w, h)
        return h

    def _put(self, i: int, z: Tensor, v: Tensor, length: float) -> None:
        self.basis.put(i, z, length)
        self.duals.put(i, v, length)
