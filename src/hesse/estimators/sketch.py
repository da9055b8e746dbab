# SPDX-License-Identifier: Apache-2.0
"""A growing sketch Y = A Omega = Q R: what XTrace, XNysTrace and XDiag are computed from."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.errors import FallbackWarning, Status
from hesse.estimators.arguments import too_small, vector_bytes
from hesse.estimators.estimate import Estimate, student
from hesse.estimators.orthonormal import extend
from hesse.estimators.probes import products
from hesse.estimators.sampling import Sampler, is_check, next_check
from hesse.operators.base import LinearOperator
from hesse.vectors import norm

LEAST_PROBES = 3


@dataclass
class Sketch:
    """Probes Omega and the basis Q as rows, R, the products of A with Q if they are taken."""

    generator: torch.Generator | None
    probes: Tensor
    basis: Tensor
    images: Tensor
    R: Tensor
    products: int = 0
    shift: float = 0.0
    value: Tensor | float = 0.0
    standard_error: Tensor | float = 0.0

    @property
    def size(self) -> int:
        """How many probes there are."""
        return len(self.probes)

    @property
    def ready(self) -> bool:
        """Whether the target is checked now: always, as the sketch grows by half at a time."""
        return is_check(self.size) or self.size == self.probes.shape[1]

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
            largest = max(max(norm(row) for row in rows), torch.finfo(A.dtype).tiny ** 0.25)
            self.shift = roundings * torch.finfo(A.dtype).eps * largest
        rows = rows + self.shift * probes
        self.basis, columns = extend(A, self.basis, rows, self.generator)
        R = torch.zeros(len(columns), len(columns), dtype=torch.float64)
        R[: self.size, : self.size] = self.R
        R[:, self.size :] = columns
        self.R, self.probes = R, torch.cat([self.probes, probes])
        self.products += len(probes)


def empty_sketch(sampler: Sampler) -> Sketch:
    """A sketch of no probes."""
    A = sampler.A
    none = torch.empty(0, A.shape[1], dtype=A.dtype, device=A.device)
    return Sketch(sampler.generator, none, none, none, torch.zeros(0, 0, dtype=torch.float64))


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
        too_small(A, held * LEAST_PROBES, sampler.vectors, what, sampler.call)

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
