# SPDX-License-Identifier: Apache-2.0
"""When an estimate is accurate enough, and at which sample sizes that is checked.

A rule that checks the standard error after every sample stops too early: it stops at the first
sample size at which the standard error happens to be underestimated. The criterion is therefore
checked at few sample sizes, 16, 24, 36, ..., each half as large again as the last. For normal
samples and Student's interval that keeps the coverage above 94% for every tolerance; `quantile_of`
widens the interval for samples that are not normal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from hesse.errors import check_tolerances
from hesse.estimators.estimate import Estimate

FIRST_CHECK = 16


def next_check(count: int, first: int = FIRST_CHECK) -> int:
    """The smallest sample size above `count` at which the criterion is checked.

    >>> next_check(0), next_check(16), next_check(40)
    (16, 24, 54)
    """
    check = first
    while check <= count:
        check = math.ceil(1.5 * check)
    return check


def is_check(count: int, first: int = FIRST_CHECK) -> bool:
    """Whether the criterion is checked at this sample size."""
    return count > 0 and next_check(count - 1, first) == count


class Criterion(Protocol):
    """When a result is accurate enough."""

    def is_met(self, result: Any, /) -> bool:
        """Whether this result is."""
        ...

    def excess(self, result: Any, /) -> float:
        """How many times as many samples more as there are now it needs."""
        ...


@dataclass(frozen=True)
class Tolerance:
    """Standard error at most max(rtol |value|, atol), where |.| is `norm`."""

    rtol: float
    atol: float
    norm: Callable[[Any], float] = abs

    def __post_init__(self) -> None:
        check_tolerances(rtol=self.rtol, atol=self.atol)

    def at(self, value: Any) -> float:
        """The largest admissible standard error of this value."""
        return max(self.rtol * self.norm(value), self.atol)

    def is_met(self, estimate: Estimate) -> bool:
        """Whether the estimate is accurate enough."""
        return self.norm(estimate.standard_error) <= self.at(estimate.value)

    def excess(self, estimate: Estimate) -> float:
        """How many times as many samples more as there are now the tolerance needs."""
        error, admissible = self.norm(estimate.standard_error), self.at(estimate.value)
        return (error / admissible) ** 2 - 1 if admissible > 0.0 else math.inf

    def min_samples(self, max_products: int) -> int:
        """The number of samples that are taken in any case."""
        return FIRST_CHECK if max(self.rtol, self.atol) > 0.0 else max_products
