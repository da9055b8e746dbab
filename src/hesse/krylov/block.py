# SPDX-License-Identifier: Apache-2.0
"""Several right-hand sides at once: every column has a tolerance and a residual of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hesse.krylov.system import SolverState, System


@dataclass
class BlockState(SolverState):
    """A block after a step: x and the residual of shape (n, k), the residual norm the largest."""

    residual_norms: Tensor = field(default_factory=lambda: torch.zeros(0))
    b_norms: Tensor = field(default_factory=lambda: torch.zeros(0))
    tolerances: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def unsolved(self) -> Tensor:
        """The columns whose residual is too large."""
        return (~(self.residual_norms <= self.tolerances)).nonzero()[:, 0]

    def is_solved(self, system: System) -> bool:
        """Whether every column meets its tolerance."""
        return len(self.unsolved) == 0

    def recompute(self, system: System) -> None:
        """Replace the residuals of the recurrence by B - A X. k products."""
        self.residual = system.b - system.A._matmat(self.x)
        self.products += self.x.shape[1]
        self.measure(system)

    def begin(self, system: System) -> None:
        """The tolerance max(rtol |b_j|, atol) of every column, and the first norms."""
        self.b_norms = system.A.codomain.column_norms(system.b)
        self.tolerances = (system.rtol * self.b_norms).clamp(min=system.atol)
        if system.A.domain.any(self.x):
            self.recompute(system)
        else:
            self.measure(system)
        self.history.append(self.residual_norm)

    def measure(self, system: System) -> None:
        """Set the residual norms to those of the residual."""
        self.residual_norms = system.A.codomain.column_norms(self.residual)
        self.residual_norm = float(self.residual_norms.max())
