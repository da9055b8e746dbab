# SPDX-License-Identifier: Apache-2.0
"""Whether the losses of the batches of a risk combine to the loss of the whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from hesse.ad.loss import map_outputs
from hesse.ad.torch_calls import TorchCalls
from hesse.data.batches import Batch, Batches
from hesse.data.reduction import EvaluatedBatch, check_average, check_batches
from hesse.data.slicing import num_examples
from hesse.errors import DataError
from hesse.risk.arguments import explaining
from hesse.risk.call import BatchLoss, LossCall, ModelCall, device_of
from hesse.risk.nearby import evaluated_nearby
from hesse.risk.trial import Trial, check_repeats, try_model
from hesse.vectors.space import Tree


@dataclass(frozen=True)
class Averaging:
    """The tests of a model and a loss on batches.

    Args:
        call: the model.
        loss: the loss.
        data: the batches whose losses must combine.
        mean: whether to the mean, with their weights, or to the sum.
        slices: whether the losses of two slices of a batch must combine as well.
    """

    call: ModelCall
    loss: Callable[[Any, Any], Tensor]
    data: Batches
    mean: bool
    slices: bool

    def tested(self, params: Tree, batches: list[Batch]) -> tuple[Averaging, float]:
        """The same with what a trial on these batches shows of the model, and the tolerance."""
        averaging, rtol = self, 0.0
        for batch in batches:
            trial = try_model(averaging.call, LossCall(self.loss), params, batch)
            averaging, rtol = replace(averaging, call=trial.call), max(rtol, trial.rtol)
            if self.slices:
                averaging._check_slices(params, batch, trial)
        return averaging, rtol

    def _check_slices(self, params: Tree, batch: Batch, trial: Trial) -> None:
        """Raise unless the losses of two slices of a batch combine to that of the whole."""
        point, whole = self._nearby(params, batch)

        def value(part: Batch) -> Tensor:
            return self._evaluated(part, point)[1]

        try:
            check_average(value, whole, batch, self.data, mean=self.mean, rtol=trial.rtol)
        except DataError:
            # At the parameters themselves noise need not show: their last layer may be zero.
            check_repeats(whole, float(value(batch)), trial.rtol)
            raise

    def _nearby(self, params: Tree, batch: Batch) -> tuple[Tree, float]:
        """A point near the parameters, and the loss of a batch there."""
        return evaluated_nearby(
            lambda point: float(self._evaluated(batch, point)[1]), params, math.isfinite
        )

    def check_batches(self, params: Tree, rtol: float) -> None:
        """Raise unless the losses of the first batch and each other one combine."""
        params, _ = self._nearby(params, self.data.first)

        def evaluate(batch: Batch) -> EvaluatedBatch:
            moved = batch.to(device_of(params))
            with explaining(params, batch):
                outputs, value = self._evaluated(moved, params)
            outputs = map_outputs(Tensor.detach, outputs)
            count = num_examples(batch)
            return EvaluatedBatch(moved.targets, outputs, count, batch.weight, float(value))

        def loss(outputs: Any, targets: Any) -> Tensor:
            with TorchCalls(), self.call.substitution(params):
                return LossCall(self.loss)(outputs, targets).detach()

        check_batches(evaluate, loss, self.data, self.data, mean=self.mean, rtol=rtol)

    def _evaluated(self, batch: Batch, params: Tree) -> tuple[Any, Tensor]:
        """The outputs of the model for a batch, and the loss."""
        loss = BatchLoss(self.call, LossCall(self.loss), batch)
        with TorchCalls():
            outputs, value = loss.outputs_and_loss(params)
        return outputs, value.detach()
