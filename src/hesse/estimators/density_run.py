# SPDX-License-Identifier: Apache-2.0
"""How a density of eigenvalues is sampled: probes are drawn until the criterion is met."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hesse.errors import Status, check_count, check_tolerances
from hesse.estimators.density import SpectralDensity
from hesse.estimators.estimator_run import EstimatorRun
from hesse.estimators.exact import MAX_DENSE, ExactValue
from hesse.estimators.probes import signs
from hesse.estimators.structured import known_eigenvalues
from hesse.estimators.tolerance import is_check, next_check
from hesse.estimators.vector_budget import raise_too_small
from hesse.progress import uninterrupted


@dataclass(frozen=True)
class DensityCriterion:
    """At least so many probes and, with an rtol, an integrated standard error of at most that."""

    probes: int
    rtol: float | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "probes", check_count("probes", self.probes, 1))
        if self.rtol is not None:
            check_tolerances(rtol=self.rtol)

    def is_met(self, density: SpectralDensity) -> bool:
        """Whether the density is accurate enough."""
        accurate = self.rtol is None or density.error <= self.rtol
        return len(density.nodes) >= self.probes and accurate

    def excess(self, density: SpectralDensity) -> float:
        """How many times as many probes more as there are now it needs."""
        missing = self.probes / len(density.nodes) - 1
        if self.rtol is None:
            return missing
        return max(missing, (density.error / self.rtol) ** 2 - 1 if self.rtol > 0.0 else math.inf)


class DensitySampler(ABC):
    """The samples of the probes so far, in the attributes that `saved` names for a checkpoint.

    A block of probes advances together, a product of each at a time: after every one the state is
    whole, so that it can be saved, and a limit can end the run, within a block.

    Args:
        run: what it works with; its criterion is checked after m, 3m/2, ... probes, where m is the
            number asked for.
        steps: products a probe.
        points: size of the grid.
    """

    def __init__(self, run: EstimatorRun[DensityCriterion], steps: int, points: int) -> None:
        self.run, self.A, self.generator = run, run.A, run.generator
        self.steps, self.points, self.products = steps, points, 0
        self.exact: Any = None

    @property
    @abstractmethod
    def count(self) -> int:
        """The number of probes so far."""

    @property
    @abstractmethod
    def cost(self) -> int:
        """The number of products that the next probe takes."""

    @property
    @abstractmethod
    def held(self) -> int:
        """The number of vectors that a probe takes."""

    @property
    @abstractmethod
    def is_begun(self) -> bool:
        """Whether there is a block whose samples are not complete."""

    @abstractmethod
    def begin(self, probes: Tensor) -> None:
        """Begin with a block of probes; takes no product."""

    @abstractmethod
    def advance(self) -> bool:
        """Take a product of every probe of the block; False once its samples are complete."""

    @abstractmethod
    def estimate(self, status: Status = Status.UNFINISHED) -> SpectralDensity | None:
        """The density from the complete probes; without any, from the block so far."""

    @property
    def is_due(self) -> bool:
        """Whether the criterion is checked now."""
        return is_check(self.count, self.run.criterion.probes)

    def sample(self) -> SpectralDensity:
        """Draw probes until the criterion is met."""
        if self._together < 1:
            purpose = f"one probe of {self.steps} steps"
            budget = self.run.max_vectors
            raise_too_small(self.A, self.held, budget, purpose, "take fewer steps")
        known = known_eigenvalues(self.A) if self.A.domain.n <= MAX_DENSE else None
        if known is not None:
            self.exact = ExactValue(known, 0.0)
            density = self.estimate(Status.CONVERGED)
            assert density is not None
            return density
        self.run.limits.require(self.cost, "one probe takes")
        self.run.is_exact_due = self.run.starts_exact(self.run.criterion.probes * self.cost)
        return self.run.sample(self, self._step, is_always_whole=True)

    @property
    def _together(self) -> int:
        """How many probes fit into the memory budget."""
        return self.run.max_vectors // self.held

    def _step(self) -> bool:
        run = self.run
        if not self.is_begun:
            missing = next_check(self.count, run.criterion.probes) - self.count
            k = min(run.block_size, self._together, missing, run.room(self, self.cost))
            if k < 1:
                return False
            with uninterrupted():  # the generator and the block go together
                self.begin(signs(self.A.domain, k, self.generator))
        while self.advance() and run.goes_on_within(self):
            pass
        return True
