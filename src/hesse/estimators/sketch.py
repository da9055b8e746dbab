# SPDX-License-Identifier: Apache-2.0
"""A growing sketch Y = A Omega = Q R: what XTrace, XNysTrace and XDiag are computed from."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hesse.errors import FallbackWarning, Status
from hesse.estimators.arguments import HUTCHINSON, too_small, vector_bytes
from hesse.estimators.estimate import Estimate, student
from hesse.estimators.orthonormal import extend
from hesse.estimators.probes import products
from hesse.estimators.sampling import Sampler, is_check, next_check
from hesse.operators.algebra import LinearOperator
from hesse.vectors.inner_products import norm

LEAST_PROBES = 3


def no_entries() -> Tensor:
    """A matrix that will grow."""
    return torch.zeros(0, 0, dtype=torch.float64)


@dataclass
class Sketch:
    """Probes Omega, the basis Q, and the products of A with Q if they are taken, as rows; and R.

    Each growth adds a block of rows to each, so that none is copied when more come.
    """

    n: int
    generator: torch.Generator | None
    probes: list[Tensor] = field(default_factory=list)
    basis: list[Tensor] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    R: Tensor = field(default_factory=no_entries)
    products: int = 0
    shift: float = 0.0
    value: Tensor | float = 0.0
    standard_error: Tensor | float = 0.0

    @property
    def size(self) -> int:
        """How many probes there are."""
        return len(self.R)

    @property
    def ready(self) -> bool:
        """Whether the target is checked now: always, as the sketch grows by half at a time."""
        return is_check(self.size) or self.size == self.n

    def estimate(self, status: Status = Status.UNFINISHED) -> Estimate | None:
        """The estimate from the present sketch."""
        if self.size == 0:
            return None
        quantile = student(self.size - 1)
        return Estimate(self.value, self.standard_error, self.products, status, quantile)

    def grow(
        self, A: LinearOperator, probes: Tensor, block: int, call: str, roundings: float = 0.0
    ) -> None:
        """Take in more probes: one product with A + shift I each, the shift so many roundings."""
        rows = products(A, probes, block, call)
        if self.size == 0:
            largest = max(norm(row) for row in rows) or torch.finfo(A.dtype).tiny ** 0.25
            self.shift = roundings * torch.finfo(A.dtype).eps * largest
        if self.shift > 0.0:
            rows.add_(probes, alpha=self.shift)
        rows, columns = extend(A, self.basis, rows, self.generator)
        R = torch.zeros(len(columns), len(columns), dtype=torch.float64)
        R[: self.size, : self.size] = self.R
        R[:, self.size :] = columns
        self.R = R
        self.probes.append(probes)
        self.basis.append(rows)
        self.products += len(probes)

    def multiply(self, A: LinearOperator, block: int, call: str) -> None:
        """Take the products of A with the new rows of the basis."""
        images = products(A, self.basis[-1], block, call).contiguous()
        self.images.append(images)
        self.products += len(images)


def grown_gram(A: LinearOperator, known: Tensor, left: list[Tensor], right: list[Tensor]) -> Tensor:
    """The inner products of all rows with all rows, known but for those of the last blocks."""
    none = known.new_zeros(0, len(right[-1]))
    beside = torch.cat([none, *(A.domain.gram(block, right[-1]) for block in left[:-1])])
    below = torch.cat([A.domain.gram(left[-1], block) for block in right], dim=1)
    return torch.cat([torch.cat([known, beside], dim=1), below])


def grow_until_met(
    sampler: Sampler, state: Sketch, cost: int, held: int, advance: Callable[[int], None]
) -> Estimate:
    """Grow the sketch by half, and call advance(probes to add), until the target is met.

    `cost` is in products a probe, `held` in vectors a probe.
    """
    A, n = sampler.A, sampler.A.shape[1]
    fits = sampler.vectors // held
    if fits < min(LEAST_PROBES, n):
        what = f"a sketch of {LEAST_PROBES} probes"
        too_small(A, held * LEAST_PROBES, sampler.vectors, what, sampler.call, HUTCHINSON)
    sampler.run.require(cost * min(LEAST_PROBES, n), sampler.call, "a first sketch takes")

    def step() -> bool:
        wanted = min(next_check(state.size), n)
        more = min(wanted - state.size, sampler.room(state, cost), fits - state.size)
        if more == fits - state.size < sampler.room(state, cost) and fits < wanted:
            need = held * wanted * vector_bytes(A)
            message = f"{sampler.call}: the sketch ends at {fits} probes because {wanted} need"
            warnings.warn(f"{message} a memory_budget of {need:,} bytes", FallbackWarning, 3)
        if more < 1 or state.size + more < min(LEAST_PROBES, n):
            return False
        advance(more)
        return True

    return sampler.sample(state, step)
