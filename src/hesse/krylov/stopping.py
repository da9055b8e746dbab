# SPDX-License-Identifier: Apache-2.0
"""When a truncated solve is good enough: rules beside the size of the residual.

A rule is a pure function of the solver's state after a step; a true result stops the solve. In an
optimiser, which minimises a quadratic model q(x) = x'Ax/2 - b'x, progress in q is the better
measure: the residual of CG may grow while q falls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


class ModelHistory(Protocol):
    """A state that has the values of the quadratic model after every step, the first step first."""

    @property
    def model_values(self) -> Sequence[float]:
        """q after steps 1, 2, ...; the last is the present one."""
        ...


def relative_progress(tolerance: float = 5e-4, window: int = 10) -> Callable[[ModelHistory], bool]:
    """Stop when the model has gained less than `tolerance` a step, relative to all it has gained.

    With w = max(window, ceil(i / 10)): at step i > w, stop if q_{i-w} < 0 and
    (q_i - q_{i-w}) / q_i < tolerance w. The rule and its constants are those of Martens 2010,
    section 4.4.

    >>> from types import SimpleNamespace
    >>> rule = relative_progress(window=2)
    >>> [rule(SimpleNamespace(model_values=[-1.0, *last])) for last in ([-2.0, -3.0], [-1.0, -1.0])]
    [False, True]
    """

    def stop(state: ModelHistory) -> bool:
        values = state.model_values
        i = len(values)
        w = max(window, math.ceil(0.1 * i))
        if i <= w or values[i - 1 - w] >= 0.0:
            return False
        return (values[-1] - values[i - 1 - w]) / values[-1] < tolerance * w

    return stop


@dataclass(frozen=True)
class ForcingTerm:
    """The relative tolerance `eta` of one Newton step, and the gradient norm it was made for."""

    eta: float
    gradient_norm: float


@dataclass(frozen=True)
class EisenstatWalker:
    r"""The relative tolerance that a Newton step deserves, from how the gradient has fallen.

    $$ \eta_k = \gamma\, (\lVert g_k\rVert / \lVert g_{k-1}\rVert)^\alpha $$

    at most `largest`, and at least gamma eta_{k-1}^alpha while that exceeds 0.1. The second choice
    of Eisenstat & Walker 1996, doi:10.1137/0917003, with their constants and safeguard. The norm of
    the last call again, as after a rejected step, gives the last eta again.

    >>> rule = EisenstatWalker()
    >>> first = rule(1.0)
    >>> second = rule(0.5, first)
    >>> first.eta, second.eta, rule(0.01, second).eta
    (0.5, 0.225, 0.00036)
    """

    gamma: float = 0.9
    alpha: float = 2.0
    largest: float = 0.5

    def __call__(self, gradient_norm: float, last: ForcingTerm | None = None) -> ForcingTerm:
        """The term for a gradient of this norm, after `last`."""
        if last is None:
            return ForcingTerm(self.largest, gradient_norm)
        if math.isnan(last.gradient_norm) or gradient_norm == last.gradient_norm:
            return ForcingTerm(last.eta, gradient_norm)
        eta = self.gamma * (gradient_norm / last.gradient_norm) ** self.alpha
        safeguard = self.gamma * last.eta**self.alpha
        eta = min(self.largest, max(eta, safeguard) if safeguard > 0.1 else eta)
        return ForcingTerm(eta, gradient_norm)


def geometric_grid(start: int = 5, ratio: float = 1.3) -> Callable[[int], bool]:
    """Which iterates to keep for backtracking: 5, 7, 10, 13, ..., each `ratio` times the last.

    >>> [i for i in range(30) if geometric_grid()(i)]
    [5, 7, 10, 13, 17, 23]
    """

    def grid() -> Iterator[int]:
        point = start
        while True:
            yield point
            point = math.ceil(point * ratio)

    def keep(iteration: int) -> bool:
        for point in grid():
            if point >= iteration:
                return point == iteration
        return False

    return keep
