# SPDX-License-Identifier: Apache-2.0
"""How accurately a Newton step is computed: the forcing term of inexact Newton methods."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hesse.krylov.stopping import EisenstatWalker, ForcingTerm

_LARGEST = 0.5


@dataclass
class ForcingState:
    """The last forcing term; NaN before the first."""

    eta: float = math.nan
    gradient_norm: float = math.nan

    def tolerance(self, gradient_norm: float, gradient_tolerance: float) -> float:
        """The relative tolerance of the next solve, by the rule of `EisenstatWalker`.

        It is no tighter than the tolerance of the minimisation needs.

        >>> ForcingState().tolerance(1.0, 1e-8)
        0.5
        """
        last = None if math.isnan(self.eta) else ForcingTerm(self.eta, self.gradient_norm)
        term = EisenstatWalker()(gradient_norm, last)
        self.eta, self.gradient_norm = term.eta, term.gradient_norm
        return min(_LARGEST, max(term.eta, 0.5 * gradient_tolerance / gradient_norm))
