# SPDX-License-Identifier: Apache-2.0
"""When a truncated solve is good enough: rules beside the size of the residual.

A rule is a function of the solver's state after a step; a true result stops the solve. Minimising a
quadratic model q(x) = x'Ax/2 - b'x as part of an optimiser, progress in q is the better measure:
the residual of CG may grow while q falls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

Stop = Callable[["object"], bool]


def relative_progress(tolerance: float = 5e-4, window: int = 10) -> Callable[..., bool]:
    """Stop when the model has gained less than `tolerance` a step, relative to all it has gained.

    With w = max(window, ceil(i / 10)): at step i > w, stop if q_{i-w} < 0 and
    (q_i - q_{i-w}) / q_i < tolerance w. The rule and its constants are those of Martens 2010,
    section 4.4.
    """
    values: list[float] = []

    def stop(state) -> bool:
        values.append(state.model_value)
        i = len(values)
        w = max(window, math.ceil(0.1 * i))
        if i <= w or values[i - 1 - w] >= 0.0:
            return False
        return (values[-1] - values[i - 1 - w]) / values[-1] < tolerance * w

    return stop


class EisenstatWalker:
    r"""The relative tolerance that a Newton step deserves, from how the gradient has fallen.

    $$ \eta_k = \gamma\, (\lVert g_k\rVert / \lVert g_{k-1}\rVert)^\alpha $$

    at most `largest`, and at least gamma eta_{k-1}^alpha while that exceeds 0.1. The second choice
    of Eisenstat & Walker 1996, doi:10.1137/0917003, with their constants and safeguard. The norm of
    the last call again, as after a rejected step, gives the last eta again.

    >>> forcing = EisenstatWalker()
    >>> forcing(1.0), forcing(0.5), forcing(0.01)
    (0.5, 0.225, 0.00036)
    """

    def __init__(self, gamma: float = 0.9, alpha: float = 2.0, largest: float = 0.5) -> None:
        self.gamma, self.alpha, self.largest = gamma, alpha, largest
        self._eta, self._last = largest, math.nan

    def __call__(self, gradient_norm: float) -> float:
        """eta for a gradient of this norm."""
        if not math.isnan(self._last) and gradient_norm != self._last:
            eta = self.gamma * (gradient_norm / self._last) ** self.alpha
            safeguard = self.gamma * self._eta**self.alpha
            self._eta = min(self.largest, max(eta, safeguard) if safeguard > 0.1 else eta)
        self._last = gradient_norm
        return self._eta


def geometric_grid(start: int = 5, ratio: float = 1.3) -> Callable[[int], bool]:
    """Which iterates to keep for backtracking: 5, 7, 9, 12, ..., each `ratio` times the last.

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
