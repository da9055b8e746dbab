# SPDX-License-Identifier: Apache-2.0
r"""The approximation |b| V f(T) e_1 to f(A) b from the Lanczos process of b, and its error.

The error is estimated from how the approximation changes between two evaluations; V is orthonormal,
so that the change of its coordinates is enough. One change may vanish by chance, as for the sign:
the larger of the last two is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hesse.errors import Status
from hesse.estimators.lockstep import has_ended
from hesse.estimators.ritz_function import RitzFunction
from hesse.krylov.lanczos_process import LanczosProcess
from hesse.progress import Run

FIRST_CHECK, _GROWTH = 4, 1.1  # after 4, 8, 12, ... steps, later at intervals of a tenth


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
        lanczos: the process of b, before its first step.
        length: |b|.
        rtol: converged when the error is at most rtol |f(A) b|.
        limits: of this column.
    """

    def __init__(
        self,
        f: RitzFunction,
        lanczos: LanczosProcess,
        length: float,
        rtol: float,
        limits: Run,
    ) -> None:
        self.f, self.lanczos, self.length = f, lanczos, length
        self.rtol, self.limits, self.state = rtol, limits, FunctionState()
        self.y = torch.zeros(0, dtype=torch.float64)
        self.steps, self._next_check = len(lanczos.basis.rows) - 1, FIRST_CHECK
        if length == 0.0:
            self.state.errors, limits.status = [0.0], Status.CONVERGED

    @property
    def goes_on(self) -> bool:
        """Whether it takes another step."""
        return self.limits.status is Status.UNFINISHED

    def after_step(self) -> None:
        """Evaluate the approximation if it is due."""
        size = self.state.products = self.lanczos.size
        within_limits = self.limits.goes_on(self.state)
        is_due = size in (self._next_check, self.steps) or has_ended(self.lanczos)
        if is_due or not within_limits:
            self._evaluate()

    def _evaluate(self) -> None:
        size, last = self.lanczos.size, self.y
        self.y = self.length * self.f.first_column(self.lanczos)
        if has_ended(self.lanczos):
            self.state.errors = [0.0]
        else:
            self.state.errors.append(_distance(self.y, last))
        if self.state.error <= self.rtol * float(self.y.norm()):
            self.limits.status = Status.CONVERGED
        elif size == self.steps:
            self.limits.status = Status.MAX_ITERATIONS
        else:
            self.limits.after_step(self.state)
        self._next_check = max(size + FIRST_CHECK, math.ceil(_GROWTH * size))

    def value(self) -> Tensor:
        """The approximation; zero before the first evaluation, when its error is infinite."""
        return self.lanczos.combine(self.y[:, None])[0]


def _distance(y: Tensor, earlier: Tensor) -> float:
    return float((y - torch.nn.functional.pad(earlier, (0, len(y) - len(earlier)))).norm())
