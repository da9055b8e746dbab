# SPDX-License-Identifier: Apache-2.0
"""A density of eigenvalues in the making: probes are taken together until there are enough."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from hesse.errors import Status
from hesse.estimators.arguments import too_small
from hesse.estimators.density import SpectralDensity
from hesse.estimators.probes import signs
from hesse.estimators.sampling import Sampler, is_check, next_check


@dataclass(frozen=True)
class Enough:
    """So many probes, and with an rtol an integral of the standard error of at most that."""

    probes: int
    rtol: float | None

    def met(self, density: SpectralDensity) -> bool:
        """Whether the density comes from enough probes."""
        accurate = self.rtol is None or density.error <= self.rtol
        return len(density.nodes) >= self.probes and accurate


class ProbedDensity(ABC):
    """The probes so far, in the attributes named in `saved`; a method says what it takes of each.

    Args:
        sampler: what it works with; its target is looked at after m, 3m/2, ... probes, m the number
            asked for.
        steps: products a probe.
        points: size of the grid.
    """

    def __init__(self, sampler: Sampler[Enough], steps: int, points: int) -> None:
        self.sampler, self.A, self.generator = sampler, sampler.A, sampler.generator
        self.steps, self.points, self.products = steps, points, 0

    @property
    @abstractmethod
    def count(self) -> int:
        """Probes taken."""

    @property
    @abstractmethod
    def cost(self) -> int:
        """Products the next probe takes."""

    @property
    @abstractmethod
    def held(self) -> int:
        """Vectors a probe takes."""

    @abstractmethod
    def take(self, probes: Tensor) -> None:
        """Take in probes."""

    @abstractmethod
    def estimate(self, status: Status = Status.UNFINISHED) -> SpectralDensity | None:
        """The density from the probes so far, if there are any."""

    @property
    def together(self) -> int:
        """How many probes fit into the memory budget."""
        return self.sampler.vectors // self.held

    @property
    def ready(self) -> bool:
        """Whether the target is checked now."""
        return is_check(self.count, self.sampler.target.probes)

    def density(self) -> SpectralDensity:
        """Take probes until there are enough."""
        self._check_limits()
        return self.sampler.sample(self, self._step)

    def _step(self) -> bool:
        sampler = self.sampler
        wanted = next_check(self.count, sampler.target.probes) - self.count
        k = min(sampler.block_size, self.together, wanted, sampler.room(self, self.cost))
        if k < 1:
            return False
        self.take(signs(self.A, k, self.generator))
        return True

    def _check_limits(self) -> None:
        """One probe must fit."""
        sampler = self.sampler
        if self.together < 1:
            what = f"one probe of {self.steps} steps"
            too_small(self.A, self.held, sampler.vectors, what, sampler.call, "take fewer steps")
        sampler.run.require(self.cost, sampler.call, "one probe takes")
