# SPDX-License-Identifier: Apache-2.0
"""How much of the time of a training measurements may take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class TimeBudget:
    """Measurements take at most `share` of the time of the training itself, by `clock`.

    The first one is always taken. Another is taken once all of them together, this one at the price
    of the dearest, are within the share: so they stay within it afterwards, and in the long run
    no fewer are taken.

    >>> times = iter([0.0, 0.0, 1.0, 5.0, 21.0])
    >>> budget = TimeBudget(0.1, lambda: next(times))
    >>> budget.allows()
    True
    >>> with budget.spending():           # from 0 to 1
    ...     pass
    >>> budget.allows(), budget.allows()  # at 5: 2 of 4; at 21: 2 of 20
    (False, True)
    """

    share: float
    clock: Callable[[], float]
    spent: float = 0.0
    last: float = 0.0
    dearest: float = 0.0
    origin: float | None = None
    """The time at which the training would have begun, had it not been interrupted."""

    def allows(self) -> bool:
        """Whether a measurement may be taken now."""
        now = self.clock()
        if self.origin is None:
            self.origin = now
        if self.spent == 0.0:
            return True
        return self.spent + self.dearest <= self.share * (now - self.origin - self.spent)

    @contextmanager
    def spending(self) -> Iterator[None]:
        """The block is a measurement."""
        began = self.clock()
        try:
            yield
        finally:
            self.last = self.clock() - began
            self.spent += self.last
            self.dearest = max(self.dearest, self.last)

    def state(self) -> dict[str, float]:
        """What `restore` takes."""
        trained = 0.0 if self.origin is None else self.clock() - self.origin - self.spent
        return {
            "spent": self.spent,
            "last": self.last,
            "dearest": self.dearest,
            "trained": trained,
        }

    def restore(self, state: dict[str, float]) -> None:
        """Continue what another process began."""
        self.spent, self.last, self.dearest = state["spent"], state["last"], state["dearest"]
        self.origin = self.clock() - state["trained"] - self.spent
