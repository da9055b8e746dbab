# SPDX-License-Identifier: Apache-2.0
"""`Validator`: is a traced program right at this point?

A program is never trusted blindly:

- when it is traced, it must repeat the product that the trace itself computed;
- at every new point, and for new data, it must repeat the outputs of f as f itself computes them,
  and every value that Python read during the trace (`.item()`, the shape of `x[mask]`); a program
  without products need not, where nothing has changed that f reads (`PointProgram`);
- at the 2nd, 4th, 8th, ... of these it must repeat a product by a graph, and so it must wherever
  the outputs are off by more than usual.

A program that fails is traced again, and disabled when that happens again and again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.engine.closeness import difference, rounding

MAX_TRACES = 4

# Outputs are those of f but for some roundings. A product is compared when they are off by more,
# and by so many times more than before when that was right.
_FEW_ROUNDINGS, _WIDER = 100.0, 4.0


@dataclass
class Validator:
    """What was learnt about the programs of one shape."""

    eps: float = 0.0
    """The rounding of a product."""
    output_eps: float = 0.0
    """The rounding of the outputs."""
    usual_error: float = 0.0
    """By which the outputs may be off before a product is compared."""
    num_traces: int = 0
    num_points: int = 0
    num_verified: int = 0

    @property
    def may_trace(self) -> bool:
        """Whether the programs may be traced once more."""
        return self.num_traces < MAX_TRACES

    def install(self, eps: float, output_eps: float, output_error: float) -> None:
        """New programs were traced, of this rounding, and with this error of the outputs."""
        self.num_points += 1
        self.eps, self.output_eps = eps, output_eps
        few = _FEW_ROUNDINGS * min(output_eps, torch.finfo(torch.float32).eps)
        self.usual_error = max(few, _WIDER * output_error)

    def output_error(self, ours: list[Tensor], theirs: list[Tensor]) -> float | None:
        """How far the outputs of the program are off; None if they are not those of f."""
        self.num_points += 1
        error = difference(ours, theirs)
        return None if error > rounding(theirs, self.output_eps) ** 0.5 else error

    def accepts(self, ours: list[Tensor], theirs: list[Tensor], *, verified: bool) -> bool:
        """Whether a program without products is right at a point, by its outputs.

        Not where a product must be compared first, unless that is done: such a point is counted
        when its product is taken.
        """
        error = difference(ours, theirs)
        if error > rounding(theirs, self.output_eps) ** 0.5:
            return False
        if not verified:
            self.num_points += 1
            if self.is_due(error):
                self.num_points -= 1
                return False
        return True

    def passes_by(self) -> bool:
        """Whether a point may go without a look at the outputs, because f has not changed.

        Not where a product must be compared, as above.
        """
        self.num_points += 1
        if self.is_due(0.0):
            self.num_points -= 1
            return False
        return True

    def is_due(self, error: float) -> bool:
        """Whether a product must be compared at this point, where outputs are off by so much."""
        is_power = self.num_points > 1 and self.num_points & (self.num_points - 1) == 0
        return is_power or error > self.usual_error

    def widen_tolerance(self, error: float) -> None:
        """The outputs were off by this where the product was right."""
        self.usual_error = max(self.usual_error, _WIDER * error)
