# SPDX-License-Identifier: Apache-2.0
r"""The quadratic model g's + s'As/2 on the Krylov space of g, to be minimised many times.

$$ \min_h\; \gamma\, e_1^T h + \tfrac12 h^T T h, \qquad s = Z h, \qquad
   \lVert (A + \lambda M^{-1}) s + g \rVert_M = \beta\, |h_j| $$

A radius or a cubic term changes the small problem only: after a rejected step the next one takes no
product. The basis is kept orthogonal, so that the small problem is the true one.

References: Gould, Lucidi, Roma & Toint 1999, doi:10.1137/S1052623497322735; Cartis, Gould & Toint
2011, doi:10.1007/s10107-009-0286-5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hesse.errors import NonFiniteError
from hesse.krylov.basis import Basis
from hesse.krylov.lanczos_process import LanczosProcess
from hesse.krylov.preconditioned_lanczos import PreconditionedLanczos
from hesse.krylov.secular import Minimum
from hesse.krylov.system import System

Subproblem = Callable[[Any, Any, float], Minimum]
"""(eigenvalues, slope in their basis, radius or sigma) -> the minimum: see secular.py."""

# The basis has room for so many products at first.
_FIRST = 16
# A space of so few dimensions is seen as a whole, beyond an invariant subspace.
_SMALL = 10


@dataclass(frozen=True)
class KrylovStep:
    """A minimum of the model: h in the basis, and what follows from T for s = Z h."""

    h: Tensor
    shift: float
    value: float
    """The model g's + s'As/2."""
    length: float
    """|s| in the norm of M^-1."""
    residual_norm: float
    """|(A + shift M^-1) s + g| in the norm of M."""


class KrylovModel:
    """The model after `size` products.

    Args:
        system: A and M, with b = -g.
        most: products at most.
        memory: for the rows of its bases, one of them or two; else they grow.
    """

    def __init__(self, system: System, most: int, memory: Sequence[Tensor] = ()) -> None:
        self.most, n = min(most, system.A.domain.n), system.A.domain.n
        first = min(_FIRST, self.most)
        self._explores, self._room = n <= _SMALL, first
        self._process: LanczosProcess | PreconditionedLanczos
        if system.preconditioner is None:
            self.slope_norm = system.b_norm
            generator = torch.Generator().manual_seed(0)
            start = system.b * (-1.0 / self.slope_norm)
            basis = Basis(system.A, first + 1, memory=memory[0] if memory else None)
            self._process = LanczosProcess(system.A, first, start, generator, basis)
        else:
            self._process = PreconditionedLanczos(system, first, memory)
            self.slope_norm = self._process.start_norm
            self._explores = False

    @property
    def size(self) -> int:
        """Products taken."""
        return self._process.size

    @property
    def memory(self) -> tuple[Tensor, ...]:
        """The rows of its basis, for the next model."""
        process = self._process
        if isinstance(process, LanczosProcess):
            return (process.basis.rows,)
        return process.basis.rows, process.duals.rows

    @property
    def is_full(self) -> bool:
        """Whether there is no use in, or no room for, another product."""
        if self.size >= self.most:
            return True
        return self.size > 0 and self._process.beta == 0.0 and not self._explores

    @property
    def is_invariant(self) -> bool:
        """Whether the Krylov space is invariant: its minima solve the whole problem."""
        return self.size > 0 and self._process.beta == 0.0

    @property
    def first_curvature(self) -> float:
        """s'As for s along M g, of length 1 in the norm of M^-1; after a product."""
        return float(self._process.T[0, 0])

    def extend(self) -> None:
        """Take another product."""
        process = self._process
        if self.size + 1 > self._room:
            self._room = min(2 * self.size, self.most)
            process.make_room(self._room)
        process.step()
        vars(self).pop("_eigen", None)

    def minimise(self, subproblem: Subproblem, scalar: float) -> KrylovStep:
        """The minimum on the present space. No product."""
        values, vectors = self._eigen
        slope = self.slope_norm * vectors[0]
        y, shift = subproblem(values.numpy(), slope.numpy(), scalar)
        y = torch.from_numpy(y)
        h = vectors @ y
        value = float(slope @ y + 0.5 * (values * y) @ y)
        residual = self._process.beta * abs(float(h[-1]))
        return KrylovStep(h, shift, value, float(y.norm()), residual)

    def step(self, found: KrylovStep) -> Tensor:
        """s = Z h."""
        return self._process.combine(found.h[:, None])[0]

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        """The eigenvalues of T, ascending, and its eigenvectors."""
        T = self._process.T[: self.size, : self.size]
        if not bool(torch.isfinite(T).all()):
            raise NonFiniteError(
                expected="finite products",
                got="NaN or Inf in a product",
                remedy="Check the operator with hesse.testing.check_operator.",
            )
        values, vectors = torch.linalg.eigh(T)
        return values, vectors
