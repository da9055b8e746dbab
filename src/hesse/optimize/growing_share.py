# SPDX-License-Identifier: Apache-2.0
"""`GrowingShare`: steps that look at a share of the examples, which grows until it is all of them.

Far from a minimum a few examples give nearly the step of all of them. A step on a part is worth
taking as long as it lowers the risk of all examples about as much as that of the part.

References: Byrd, Chin, Nocedal & Wu 2012, doi:10.1007/s10107-012-0572-5 (growing samples); Martens
2010 (ICML, "Deep learning via Hessian-free optimization").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.data.selection import count_examples
from hesse.errors import ArgumentError, DataError, kind_of
from hesse.optimize.point import Counts, Objective, Point
from hesse.ranks import RankError, alike, is_unsuitable
from hesse.result import html_table
from hesse.risk.risk import Risk

# The part stands for all examples while their risk falls by this much of what its own does.
_ENOUGH = 0.5
# The share grows by this factor; from the last value on all examples cost little more.
_GROWTH, _NEARLY_ALL = 3.0, 0.6


@dataclass(frozen=True, repr=False)
class Growing:
    """A risk of whose examples the first steps of `hesse.HessianFree` look at a share.

    Steps take the first examples of each batch in a random order, by the seed of the optimiser.
    Where the risk of all examples falls by less than half as much as that of these, the share grows
    threefold, until it is 1; where it would rise, the step is not taken.

    Args:
        risk: of all examples; its loss averages over them.
        share: of the first steps, above 0 and at most 1.

    Cost: a value of all examples for each step on a part of them, two for the first one.

    Raises:
        ArgumentError: no risk, a loss that adds up, or no such share.

    >>> from torch import nn
    >>> from hesse.optimize import Growing, HessianFree
    >>> x = torch.linspace(-1, 1, 100)[:, None]
    >>> optimizer = HessianFree(Growing(Risk(nn.Linear(1, 1), nn.MSELoss(), (x, 2 * x)), 0.1))
    >>> for _ in range(16):
    ...     loss = optimizer.step()
    >>> optimizer.param_groups[0]["share"], float(loss) < 1e-3
    (1.0, True)
    """

    risk: Risk
    share: float = 0.1

    @public("hesse.Growing(risk, share)")
    def __post_init__(self) -> None:
        """Raise unless steps may look at this share of the examples."""
        if not isinstance(self.risk, Risk) or not self.risk.averages:
            raise ArgumentError(
                expected="a hesse.Risk whose loss averages over examples",
                got="a loss that adds up" if isinstance(self.risk, Risk) else kind_of(self.risk),
                remedy="Give HessianFree the risk itself: a sum over some examples is smaller.",
            )
        if not (isinstance(self.share, float | int) and 0.0 < self.share <= 1.0):
            raise ArgumentError(
                expected="0 < share <= 1, of the examples",
                got=f"share={self.share!r}",
                remedy="Leave it out for a tenth.",
            )

    def __repr__(self) -> str:
        return f"Growing({self.risk!r}, {self.share:g})"

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        return html_table("Growing", [("risk", repr(self.risk)), ("share", f"{self.share:g}")])


class GrowingShare:
    """The parts of a risk, and whether they stand for all of it.

    Args:
        risk: of all examples; None where steps are given closures.
        objective: makes that of all examples, whose values are looked at.
        counts: where they are counted, one for each step.
        seed: of the order in which the examples of each batch are added.
    """

    def __init__(
        self, risk: Risk | None, objective: Callable[[Risk], Objective], counts: Counts, seed: int
    ) -> None:
        self._whole, self._make, self._counts, self._seed = risk, objective, counts, seed
        self._part: tuple[float, Risk | None] = 1.0, risk
        self._last: Point | None = None

    def part(self, share: float) -> Risk:
        """The risk of the first examples, in random order, of each batch: this share of them."""
        assert self._whole is not None
        if self._part[0] != share:
            self._part = share, self._risk_of(share)
        assert self._part[1] is not None
        return self._part[1]

    def _risk_of(self, share: float) -> Risk:
        """That of this share, or of a larger one where no target of it counts."""
        assert self._whole is not None
        while share < 1.0:
            with alike(self._whole.ranks):
                places = self._places(share)
            try:
                return self._whole.subset(places)
            except (DataError, RankError) as error:
                if not is_unsuitable(error):
                    raise
                share = grown(share)  # the weight of all of them is zero
        return self._whole

    def judge(self, share: float, risk: Risk, point: Point, new: Point) -> tuple[Point, float]:
        """The point after a step on this risk, and the share of the next one.

        It is the point before it where the risk of all examples would rise.
        """
        if risk is self._whole or risk is not self._part[1]:
            return new, share
        before, after = self._at(point.x), self._at(new.x)
        self._counts.nfev += 1
        fallen, of_part = before.value - after.value, point.value - new.value
        if not fallen >= 0.0:  # or NaN
            return point, grown(share)
        self._last = after
        return new, share if fallen >= _ENOUGH * of_part > 0.0 else grown(share)

    @cached_property
    def _objective(self) -> Objective:
        assert self._whole is not None
        return self._make(self._whole)

    def _at(self, x: Tensor) -> Point:
        """The point of the risk of all examples; that of the last step is known."""
        last, space = self._last, self._objective.space
        if last is not None and not space.any(last.x != x):
            return last
        return self._objective.point(x)

    def _places(self, share: float) -> Tensor:
        """Of each batch the same number of examples, in any process that may have it."""
        assert self._whole is not None
        places, start = [torch.zeros(0, dtype=torch.long)], 0
        for size in map(count_examples, self._whole.data):
            order = torch.randperm(size, generator=torch.Generator().manual_seed(self._seed))
            places.append(start + order[: math.ceil(share * size)].sort().values)
            start += size
        return torch.cat(places)


def grown(share: float) -> float:
    """The share after this one.

    >>> grown(0.1), grown(0.3)
    (0.3, 1.0)
    """
    more = round(_GROWTH * share, 12)
    return 1.0 if more > _NEARLY_ALL else more
