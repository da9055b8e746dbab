# SPDX-License-Identifier: Apache-2.0
"""An estimate with its standard error, and the running mean that it comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hesse.errors import Status
from hesse.result import Result


class _Estimate(NamedTuple):
    value: Any
    """The estimate: a float, or a tensor where a vector is estimated."""
    standard_error: Any
    """Its standard error, of the same form."""
    products: int
    """Products with the operator that it cost."""


class Estimate(Result, _Estimate):
    """(value, standard_error, products), and as attributes `status`, `about` and `interval`.

    >>> value, standard_error, products = estimate = Estimate(3.0, 0.5, 10)
    >>> estimate
    Estimate(value=3.0, standard_error=0.5, products=10)
    >>> estimate.interval, estimate["value"]
    ((2.0, 4.0), 3.0)
    """

    status: Status
    """Why it ended."""
    quantile: float
    """The 97.5% point of (estimate - truth) / standard_error, Student's."""
    rounding: Any
    """The size of the rounding errors of an exact value, of the form of the standard error."""
    relative_rounding: float
    """More of them, in units of the value; in those of every entry, for a vector."""
    about: str
    """How it was computed, where that is another way than products; else empty."""

    def __new__(
        cls,
        value: Any,
        standard_error: Any,
        products: int,
        status: Status = Status.CONVERGED,
        quantile: float = 2.0,
        rounding: Any = 0.0,
        relative_rounding: float = 0.0,
    ) -> Estimate:
        estimate = super().__new__(cls, value, standard_error, products)
        estimate.status, estimate.quantile, estimate.rounding = status, quantile, rounding
        estimate.relative_rounding = relative_rounding
        estimate.about = ""
        return estimate

    @property
    def interval(self) -> tuple[Any, Any]:
        """(low, high), which holds the truth in 95 of 100 runs (each entry, for a vector)."""
        width = self.quantile * self.standard_error + self.rounding
        if self.relative_rounding:
            width = width + self.relative_rounding * abs(self.value)
        return self.value - width, self.value + width

    def __float__(self) -> float:
        return float(self.value)

    def keys(self) -> Sequence[str]:
        """The names of the fields."""
        return [*super().keys(), "status", *(["about"] if self.about else [])]

    def __repr__(self) -> str:
        if not isinstance(self.value, float):
            return super().__repr__()
        fields = f"value={self.value}, standard_error={self.standard_error}"
        return f"Estimate({fields}, products={self.products})"


@dataclass
class RunningMean:
    """Mean and standard error of a stream of samples, numbers or tensors (Welford's update).

    >>> mean = RunningMean()
    >>> for sample in (1.0, 2.0, 3.0):
    ...     mean.add(sample)
    >>> mean.mean, round(mean.standard_error, 4)
    (2.0, 0.5774)
    """

    count: int = 0
    mean: Any = 0.0
    squares: Any = 0.0
    scale: float = 1.0
    """The unit of the squares, so that those of float32 neither overflow nor underflow."""

    def add(self, sample: Any) -> None:
        """Add one more sample."""
        self._rescale(sample)
        self.count += 1
        change = sample - self.mean
        self.mean = self.mean + change / self.count
        self.squares = self.squares + self._scaled(change) * self._scaled(sample - self.mean)

    def _rescale(self, sample: Any) -> None:
        if not isinstance(sample, Tensor) or sample.dtype != torch.float32 or not len(sample):
            return
        size = float(sample.abs().max())
        too_large, too_small = size > 1e12 * self.scale, 0.0 < size < 1e-12 * self.scale
        if math.isfinite(size) and (too_large or (too_small and self.count == 0)):
            self.squares = self.squares * (self.scale / size) ** 2
            self.scale = size

    def _scaled(self, change: Any) -> Any:
        return change if self.scale == 1.0 else change / self.scale

    @property
    def standard_error(self) -> Any:
        """Estimated standard deviation of the mean; infinite before the second sample."""
        if self.count < 2:
            return (
                torch.full_like(self.mean, math.inf) if isinstance(self.mean, Tensor) else math.inf
            )
        variance = self.squares / ((self.count - 1) * self.count)
        root = variance.sqrt() if isinstance(variance, Tensor) else math.sqrt(variance)
        return root if self.scale == 1.0 else root * self.scale


def quantile_of(count: int) -> float:
    """The 97.5% point of a mean over its standard error: Student's t with 3/5 of the usual freedom.

    The spread of n samples has n - 1 degrees of freedom if they are normal and n was fixed before.
    Here they are quadratic forms z'Az, whose fourth moment is larger (with the kurtosis 5 that six
    equal eigenvalues give, the spread is as uncertain as that of half as many normal samples), and
    the sampling stops when the spread is small. So the interval holds in 96% of runs where samples
    are normal and their number fixed, and in 93% at the worst tolerance of such a spectrum.

    >>> round(quantile_of(21), 3), round(quantile_of(1000), 3)
    (2.179, 1.964)
    """
    return math.inf if count < 2 else student(max(1, 3 * (count - 1) // 5))


def student(freedom: int) -> float:
    """The 97.5% point of Student's t with so many degrees of freedom, to three digits.

    Exact for 1 and 2, else by Cornish & Fisher's expansion from the normal distribution (Abramowitz
    & Stegun 26.7.5).

    >>> round(student(2), 4), round(student(10), 3)
    (4.3027, 2.228)
    """
    if freedom < 1:
        return math.inf
    if freedom < 3:
        p = 0.975
        return (
            math.tan(math.pi * (p - 0.5))
            if freedom == 1
            else (2 * p - 1) / math.sqrt(2 * p * (1 - p))
        )
    z = 1.959963984540054
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**k for k, term in enumerate(terms, start=1))
