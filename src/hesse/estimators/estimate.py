# SPDX-License-Identifier: Apache-2.0
"""A number with its uncertainty, and the running mean that it comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


class Estimate(NamedTuple):
    """(value, standard_error, products)."""

    value: float
    """The estimate."""
    standard_error: float
    """Its standard error; about 95% of the time the truth lies within twice this."""
    products: int
    """Products with the operator that it cost."""


@dataclass
class RunningMean:
    """Mean and standard error of a stream of samples (Welford's update).

    >>> mean = RunningMean()
    >>> for sample in (1.0, 2.0, 3.0):
    ...     mean.add(sample)
    >>> mean.mean, round(mean.standard_error, 4)
    (2.0, 0.5774)
    """

    count: int = 0
    mean: float = 0.0
    _squares: float = 0.0

    def add(self, sample: float) -> None:
        """Take in one more sample."""
        self.count += 1
        change = sample - self.mean
        self.mean += change / self.count
        self._squares += change * (sample - self.mean)

    @property
    def standard_error(self) -> float:
        """Estimated standard deviation of the mean; infinite before the second sample."""
        if self.count < 2:
            return math.inf
        return math.sqrt(self._squares / (self.count - 1) / self.count)
