# SPDX-License-Identifier: Apache-2.0
"""What the examples of a weighted risk weigh in a mean of gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from torch import Tensor

from hesse.ad.examples import Axis, Examples
from hesse.ad.likelihoods.seen import SeenLoss
from hesse.ad.summands import Summand
from hesse.data.selection import WeightedTargets
from hesse.data.slicing import num_examples
from hesse.engine.data_version import DataVersion
from hesse.errors import ArgumentError, DataError
from hesse.risk.call import BatchLoss


@dataclass(frozen=True)
class _Known:
    """The weights of the examples of a batch, and what they were computed from."""

    version: DataVersion
    weights: Tensor
    total: float


@dataclass(frozen=True)
class ExampleWeights:
    r"""w_n p_n for every example n of each batch, and their sum over all batches.

    w_n is the weight given to the example, p_n what it weighs in the mean of its batch without.

    Args:
        axes: where the examples are in each likelihood.
        averages: whether the loss is a mean.
        seen: from the loss of a batch to its likelihoods.
    """

    axes: tuple[Axis, ...]
    averages: bool
    seen: Callable[[BatchLoss], SeenLoss]
    _known: dict[int, _Known] = field(default_factory=dict, compare=False)

    def total(self, summands: Iterable[Summand]) -> float:
        """sum_b c_b sum_n w_n p_n."""
        return sum(s.coefficient * self._of(i, s).total for i, s in enumerate(summands))

    def of(self, index: int, summand: Summand) -> Tensor:
        """w_n p_n of the examples of a batch, (number,)."""
        return self._of(index, summand).weights

    def _of(self, index: int, summand: Summand) -> _Known:
        known = self._known.get(index)
        if known is None or not known.version.matches(summand.data):
            weights = self._weights(summand.function)
            version = DataVersion.of(summand.data)
            known = self._known[index] = _Known(version, weights, float(weights.double().sum()))
        return known

    def _weights(self, loss: BatchLoss) -> Tensor:
        batch = loss.batch
        assert isinstance(batch.targets, WeightedTargets)
        given = batch.targets.weights
        if bool((given < 0).any()):
            raise ArgumentError(
                expected="weights of the examples that are at least zero",
                got=f"{float(given.min()):g}",
                remedy="Give risk.weighted(w) other weights.",
            )
        plain = replace(loss, batch=replace(batch, targets=batch.targets.targets), around=None)
        number = num_examples(batch)
        if number != len(given):
            raise DataError(
                expected=f"{len(given)} examples, one for each weight",
                got=str(number),
                remedy="Give batches whose first dimension counts the examples.",
            )
        p = Examples(len(given), self.axes, self.averages).weights(self.seen(plain).likelihoods)
        return p * given.to(p)


def checked_total(total: float) -> float:
    """The sum of the weights of all examples, which is to be divided by."""
    if total > 0.0:
        return total
    raise ArgumentError(
        expected="weights of the examples that are at least zero and not all zero",
        got=f"a sum of {total:g}",
        remedy="Give risk.weighted(w) other weights.",
    )
