# SPDX-License-Identifier: Apache-2.0
"""The likelihoods of batches that were seen before.

At another point their targets and weights are the same, and the program gives the outputs: no
forward pass of the model is taken. It is at uses 1, 2, 4, 8, ... of a program, which is compared
with the model then, and whenever the data or what the loss was given have been written to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hesse.ad.likelihoods.seen import SeenLikelihoods
from hesse.ad.summands import Summand
from hesse.ad.variables import BoundFunction
from hesse.curvature.kronecker.programs import FactorPoint, FactorPrograms
from hesse.engine.data_version import DataVersion, Versions, versions

# The most bytes of targets and outputs that are kept; those of data that stay are not counted.
_KEPT = 1 << 28


@dataclass(frozen=True)
class _Seen:
    """A batch.

    Args:
        data: the version of its data.
        given: that of what the calls of the loss were given.
        likelihoods: those in its loss, without the graph of the outputs.
    """

    data: DataVersion
    given: Versions
    likelihoods: SeenLikelihoods


class SeenBatches:
    """Batches by their number.

    Args:
        programs: those of the model, whose outputs are those of the likelihoods.
    """

    def __init__(self, programs: FactorPrograms) -> None:
        self._programs = programs
        self._known: dict[int, _Seen] = {}
        self._bytes = 0

    def remember(self, number: int, data: Sequence[Tensor], loss: SeenLikelihoods) -> None:
        """Keep what was seen in a batch, while there is room."""
        likelihoods = loss.at([part.detach() for part in loss.z])
        if number not in self._known:
            addresses = {tensor.data_ptr() for tensor in data}
            held = [*likelihoods.z, *likelihoods.given]
            self._bytes += sum(t.nbytes for t in held if t.data_ptr() not in addresses)
        if number in self._known or self._bytes <= _KEPT:
            version = DataVersion.of(data)
            self._known[number] = _Seen(version, versions(likelihoods.given), likelihoods)

    def _likelihoods(self, number: int, data: Sequence[Tensor]) -> SeenLikelihoods | None:
        """Those of a batch, at the outputs where it was seen; None if it is another one now."""
        seen = self._known.get(number)
        if seen is None or versions(seen.likelihoods.given) != seen.given:
            return None
        return seen.likelihoods if seen.data.matches(data) else None

    def enter(
        self, number: int, f: BoundFunction, summand: Summand, *, single_example: bool
    ) -> tuple[FactorPoint, SeenLikelihoods] | None:
        """The batch at another point; None where the model must be run."""
        known = self._likelihoods(number, summand.data)
        if known is None:
            return None
        point = self._programs.enter_unchecked(
            f, summand.data, summand.key, single_example=single_example
        )
        return None if point is None else (point, known.at(point.outputs))
