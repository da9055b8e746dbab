# SPDX-License-Identifier: Apache-2.0
r"""f(A) b in the making, for one b: |b| V f(T) e_1 from its Lanczos process, with its error.

The error is seen from how the approximation changes from look to look; V is orthonormal, so that
its coordinates tell. One change may vanish by chance, as for the sign: two of them are looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hesse.errors import Status
from hesse.estimators.lockstep import has_ended
from hesse.estimators.ritz_function import RitzFunction
from hesse.krylov.lanczos import Lanczos
from hesse.progress import Run

FIRST_LOOK, _GROWTH = 4, 1.1  # after 4, 8, 12, ... steps, later at intervals of a tenth


@dataclass
class FunctionState:
    """What a callback sees: the estimated error after so many products."""

    errors: list[float] = field(default_factory=list)
    products: int = 0

    @property
    def error(self) -> float:
        """The larger of the last two changes."""
        return max(self.errors[-2:], default=math.inf)


class FunctionColumn:
    """The approximation to f(A) b so far.

    Args:
        f: gives f(T) e_1.
        lanczos: the process, not begun yet.
        length: |b|.
        rtol: of the error.
        run: the limits of this column.
    """

    def __init__(
        self,
        f: RitzFunction,
        lanczos: Lanczos,
        length: float,
        rtol: float,
        run: Run,
    ) -> None:
        self.f, self.lanczos, self.length = f, lanczos, length
        self.rtol, self.run, self.state = rtol, run, FunctionState()
        self.y = torch.zeros(0, dtype=torch.float64)
        self.steps, self.next_look = len(lanczos.T) - 1, FIRST_LOOK
        if length == 0.0:
            self.state.errors, run.status = [0.0], Status.CONVERGED

    @property
    def goes_on(self) -> bool:
        """Whether it takes another step."""
        return self.run.status is Status.UNFINISHED

    def after_step(self) -> None:
        """Look at the approximation if it is time to."""
        size = self.state.products = self.lanczos.size
        within_limits = self.run.goes_on(self.state)
        is_time = size in (self.next_look, self.steps) or has_ended(self.lanczos)
        if is_time or not within_limits:
            self._look()

    def _look(self) -> None:
        size, last = self.lanczos.size, self.y
        self.y = self.length * self.f.first_column(self.lanczos)
        if has_ended(self.lanczos):
            self.state.errors = [0.0]
        else:
            self.state.errors.append(_distance(self.y, last))
        if self.state.error <= self.rtol * float(self.y.norm()):
            self.run.status = Status.CONVERGED
        elif size == self.steps:
            self.run.status = Status.MAX_ITERATIONS
        else:
            self.run.after_step(self.state)
        self.next_look = max(size + FIRST_LOOK, math.ceil(_GROWTH * size))

    def value(self) -> Tensor:
        """The approximation; zero before the first look, when its error is infinite."""
        return self.lanczos.combine(self.y[:, None])[0]


def _distance(y: Tensor, earlier: Tensor) -> float:
    return float((y - torch.nn.functional.pad(earlier, (0, len(y) - len(earlier)))).norm())
