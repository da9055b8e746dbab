# SPDX-License-Identifier: Apache-2.0
"""What is fitted and what judges: the calibration risk and the held-out risk of a pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hesse.errors import ArgumentError
from hesse.risk.risk import Risk
from hesse.vectors.space import Tree

_EVERY = 5  # one example in five is held out


@dataclass(frozen=True)
class Calibration:
    """The examples that make the model, and the risk that judges what it proposes.

    Args:
        risk: all that was given.
        fitted: what the models are made of while a damping is searched for.
        judge: the held-out risk.
        splits: whether `judge` is a part of `risk`.
    """

    risk: Risk
    fitted: Risk
    judge: Risk
    splits: bool

    @staticmethod
    def of(risk: Risk, held_out: Any, searches: bool) -> Calibration:
        """With the held-out data that were given; else a fifth of those of the risk."""
        if held_out is not None:
            judge = held_out if isinstance(held_out, Risk) else risk.on(held_out)
            return Calibration(risk, risk, judge, False)
        if not searches:
            return Calibration(risk, risk, risk, False)
        each = risk.per_example
        number, here = each.number, each.places
        if number < 2 * _EVERY:
            raise ArgumentError(
                expected=f"{2 * _EVERY} examples or more, a fifth of which finds the damping",
                got=f"{number}",
                remedy="Give damping, or held_out data.",
            )
        held = torch.arange(here.start, here.stop) % _EVERY == 0
        return Calibration(risk, risk.subset(~held), risk.subset(held), True)

    def sample(self, examples: int | None, seed: int) -> Risk:
        """Some of the fitted examples, others with every seed; all of them for None."""
        if examples is None:
            return self.fitted
        each = self.fitted.per_example
        if examples >= each.number:
            return self.fitted
        order = torch.randperm(each.number, generator=torch.Generator().manual_seed(seed))
        return self.fitted.subset(each.here(order[:examples]))

    def loss(self, params: Tree) -> float:
        """What judges these parameters."""
        with torch.no_grad():
            return float(self.judge(params))
