# SPDX-License-Identifier: Apache-2.0
"""`Block`: what is known of one block of a Kronecker-factored curvature, and its operator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from hesse.curvature.kronecker.layout import BlockLayout
from hesse.errors import NonFiniteError
from hesse.operators.algebra import LinearOperator
from hesse.operators.batched_kronecker import BatchedKronecker, Factors
from hesse.operators.placed_blocks import Place
from hesse.operators.rotated_diagonal import RotatedDiagonal

DampingForm = Literal["exact", "factored", "relative"]


@dataclass(frozen=True, eq=False)
class Block:
    """L x R for every group, or Q diag(d) Q' with Q the Kronecker product of the basis.

    Args:
        names: of the parameters.
        rule: how it was read, or why there is no rule.
        kind: see `layout`.
        place: where it lies.
        left, right: L and R.
        basis, d: of an EK-FAC block.
    """

    names: tuple[str, ...]
    rule: str
    kind: str
    place: Place
    left: Factors
    right: Factors
    basis: tuple[Factors, Factors] | None = None
    d: Tensor | None = None

    @staticmethod
    def of(layout: BlockLayout, left: Factors, right: Factors) -> Block:
        """The block with these factors.

        Raises:
            NonFiniteError: the gradients that they are made of are not finite.
        """
        # A second moment has no entry larger than all of its diagonal, where every NaN is, too.
        if not all(bool(side.diagonal.isfinite().all()) for side in (left, right)):
            raise NonFiniteError(
                expected="finite gradients",
                got=f"NaN or Inf in those of {' and '.join(map(repr, layout.names))}",
                remedy="Check the parameters and the data for NaN, and the model for overflow.",
            )
        return Block(layout.names, layout.rule, layout.kind, layout.place, left, right)

    def with_diagonal(self, basis: tuple[Factors, Factors], d: Tensor | float) -> Block:
        """The same block by its diagonal in a basis."""
        assert isinstance(d, Tensor)
        return replace(self, basis=basis, d=d)

    def averaged(self, past: Block, decay: float) -> Block:
        """Its factors with those of a past block, which have the weight `decay`."""
        pairs = ((past.left, self.left), (past.right, self.right))
        left, right = (
            Factors(decay * old.entries + (1.0 - decay) * new.entries) for old, new in pairs
        )
        return replace(self, left=left, right=right)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The sizes (groups, p, q) of its factors."""
        return len(self.left.entries), self.left.size, self.right.size

    @property
    def n(self) -> int:
        """The number of entries."""
        groups, p, q = self.shape
        return groups * p * q

    @property
    def form(self) -> str:
        """What a coverage table says: "64 x 577", "dense 10", "c I"."""
        groups, _, q = self.shape
        if self.kind == "zero":
            return "0"
        if self.kind == "scalar":
            return "c I"
        if self.kind == "rows":
            return f"{'diagonal' if self.right.is_diagonal else 'dense'} {q}"
        sides = [f"{'diag ' if s.is_diagonal else ''}{s.size}" for s in (self.left, self.right)]
        return (f"{groups} of " if groups > 1 else "") + " x ".join(sides)

    @property
    def mean(self) -> float:
        """The mean of the eigenvalues: the trace over the size."""
        if self.d is not None:
            return float(self.d.sum(dtype=torch.float64)) / self.n
        return float(self.left.trace.double() @ self.right.trace.double()) / self.n

    def operator(self, shift: float) -> LinearOperator:
        """The block + shift I."""
        if self.d is not None and self.basis is not None:
            vectors = BatchedKronecker(*self.basis, symmetric=False)
            return RotatedDiagonal(vectors.domain, vectors, self.d.reshape(-1) + shift, shift)
        return BatchedKronecker(self.left, self.right, symmetric=True, shift=shift)

    def factored_operator(self, shift: float) -> LinearOperator:
        """(L + pi sqrt(c) I) x (R + sqrt(c) / pi I), pi^2 the ratio of mean eigenvalues of L and R.

        Blocks without two factors get the exact shift.
        """
        if self.kind != "kronecker" or self.d is not None:
            return self.operator(shift)
        a, b = (side.trace / side.size for side in (self.left, self.right))
        known = (a > 0) & (b > 0)
        pi = torch.where(known, a / torch.where(known, b, torch.ones_like(b)), torch.ones_like(a))
        pi, root = pi.sqrt(), shift**0.5
        left, right = self.left.plus(pi * root), self.right.plus(root / pi)
        return BatchedKronecker(left, right, symmetric=True)
