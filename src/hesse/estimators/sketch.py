# SPDX-License-Identifier: Apache-2.0
"""A growing sketch Y = A Omega = Q R, from which XTrace, XNysTrace and XDiag are computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hesse.boundary import warn
from hesse.errors import FallbackWarning, Status
from hesse.estimators.estimate import Estimate, student
from hesse.estimators.estimator_run import EstimatorRun
from hesse.estimators.exact import ExactValue
from hesse.estimators.orthonormal import extend
from hesse.estimators.probes import products
from hesse.estimators.tolerance import is_check, next_check
from hesse.estimators.vector_budget import raise_too_small, vector_bytes
from hesse.operators.algebra import LinearOperator
from hesse.vectors.space import Space

MIN_PROBES = 3


def no_entries() -> Tensor:
    """A matrix that will grow."""
    return torch.zeros(0, 0, dtype=torch.float64)


@dataclass
class Sketch:
    """Probes Omega, the basis Q, and the products with Q if they are taken, as rows; and R.

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
    exact: ExactValue | None = None

    @property
    def size(self) -> int:
        """The number of probes."""
        return len(self.R)

    @property
    def is_due(self) -> bool:
        """Whether the criterion is checked now: always, as the sketch grows by half at a time."""
        return is_check(self.size) or self.size == self.n

    def estimate(self, status: Status = Status.UNFINISHED) -> Estimate | None:
        """The estimate from the present sketch."""
        if self.size == 0:
            return None
        quantile = student(self.size - 1)
        return Estimate(self.value, self.standard_error, self.products, status, quantile)

    def grow(
        self, A: LinearOperator, probes: Tensor, block_size: int, roundings: float = 0.0
    ) -> None:
        """Add probes: one product with A + shift I each, the shift so many rounding errors."""
        rows, space = products(A, probes, block_size), A.domain
        if self.size == 0:
            largest = max(space.norms(*rows)) or torch.finfo(A.dtype).tiny ** 0.25
            self.shift = roundings * torch.finfo(A.dtype).eps * largest
        if self.shift > 0.0:
            rows.add_(probes, alpha=self.shift)
        rows, columns = extend(space, self.basis, rows, self.generator)
        R = torch.zeros(len(columns), len(columns), dtype=torch.float64)
        R[: self.size, : self.size] = self.R
        R[:, self.size :] = columns
        self.R = R
        self.probes.append(probes)
        self.basis.append(rows)
        self.products += len(probes)

    def multiply(self, A: LinearOperator, block_size: int) -> None:
        """Take the products of A with the last block of the basis."""
        images = products(A, self.basis[-1], block_size).contiguous()
        self.images.append(images)
        self.products += len(images)


def grown_gram(space: Space, known: Tensor, left: list[Tensor], right: list[Tensor]) -> Tensor:
    """The inner products of all rows with all rows; all but those of the last blocks are known."""
    none = right[-1].new_zeros(0, len(right[-1]))
    beside = torch.cat([none, *space.inners_of(left[:-1], right[-1])]).to(known)
    below = torch.cat(space.inners_of(right, left[-1])).T.to(known)
    return torch.cat([torch.cat([known, beside], dim=1), below])


def grow_until_met(
    run: EstimatorRun, state: Sketch, cost: int, held: int, add_probes: Callable[[int], None]
) -> Estimate:
    """Grow the sketch by half, by add_probes(count), until the criterion is met.

    `cost` is the number of products a probe, `held` that of vectors.
    """
    A, n = run.A, run.A.domain.n
    fits = run.max_vectors // held
    if fits < min(MIN_PROBES, n):
        purpose = f"a sketch of {MIN_PROBES} probes"
        alternative = "take method='hutchinson', which needs two vectors"
        raise_too_small(A, held * MIN_PROBES, run.max_vectors, purpose, alternative)
    run.limits.require(cost * min(MIN_PROBES, n), "a first sketch takes")

    def step() -> bool:
        aim = min(next_check(state.size), n)
        more = min(aim - state.size, run.room(state, cost), fits - state.size)
        if more == fits - state.size < run.room(state, cost) and fits < aim:
            need = held * aim * vector_bytes(A)
            warn(
                f"hesse.{run.limits.title}: the sketch ends at {fits} probes because {aim} need a "
                f"memory_budget of {need:,} bytes",
                FallbackWarning,
            )
        if more < 1 or state.size + more < min(MIN_PROBES, n):
            return False
        add_probes(more)
        return True

    return run.sample(state, step)
