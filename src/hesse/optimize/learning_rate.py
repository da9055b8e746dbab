# SPDX-License-Identifier: Apache-2.0
"""A descent whose steps are multiplied by learning rates, one for each entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hesse.optimize.point import Point
from hesse.optimize.proposal import Candidate, Descent, Proposal
from hesse.vectors.space import Space


def rates_of(groups: Sequence[Mapping[str, Any]], space: Space) -> Tensor | float:
    """The learning rate of every entry; a number if it is one for all."""
    rates = [float(group["lr"]) for group in groups]
    if len(set(rates)) == 1:
        return rates[0]
    counts = [len(group["params"]) for group in groups]
    each = [rate for rate, count in zip(rates, counts, strict=True) for _ in range(count)]
    like = space.split(space.zeros())
    return space.join([torch.full_like(t, rate) for t, rate in zip(like, each, strict=True)])


class Scaled:
    """A descent with its steps p replaced by D p, for the rates D.

    The predicted change is that along p at the length t = g'D p / g'p, which is exact where all
    rates are equal.
    """

    def __init__(self, descent: Descent, rates: Tensor | float) -> None:
        self._descent, self._rates = descent, rates

    def propose(self, point: Point, scalar: float) -> Proposal:
        """The steps of the descent, scaled."""
        proposal = self._descent.propose(point, scalar)

        def scaled(candidate: Candidate) -> Candidate:
            step = candidate.step * self._rates
            slope, own = point.space.inner_pairs(
                (point.gradient, step), (point.gradient, candidate.step)
            )
            t = slope / own if own != 0.0 else 0.0
            return Candidate(step, lambda: slope + t**2 * (candidate.predicted - own))

        at = proposal.at
        return replace(
            proposal,
            best=scaled(proposal.best),
            shorter=[scaled(candidate) for candidate in proposal.shorter],
            at=None if at is None else lambda damping: scaled(at(damping)),
        )

    def rejected(self) -> None:
        """Tell the descent."""
        self._descent.rejected()
