# SPDX-License-Identifier: Apache-2.0
"""`BatchLoss`: the loss of one batch, as a function of the parameters and of the outputs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from hesse.ad.loss import map_outputs
from hesse.data.batches import Batch
from hesse.data.selection import WeightedTargets
from hesse.errors import FunctionError
from hesse.risk.call import ModelCall, device_of
from hesse.vectors.space import Tree


class Around(Protocol):
    """What happens to the loss functions of torch that the model and the loss call."""

    def model(self, targets: Any) -> AbstractContextManager[Any]:
        """The context to call the model in."""
        ...

    def loss(self, targets: Any) -> AbstractContextManager[Any]:
        """The context to call the loss in."""
        ...


class Nothing:
    """They are called as they are."""

    def model(self, targets: Any) -> AbstractContextManager[Any]:
        """None."""
        return nullcontext()

    loss = model


@dataclass(frozen=True)
class BatchLoss:
    """The loss of a batch as a function of the parameters: loss(outputs(params))."""

    call: ModelCall
    loss_of: Callable[[Any, Any], Tensor]
    """(outputs, targets) -> a scalar."""
    batch: Batch
    around: Around | None = None

    knows_its_leaves = True  # tested at the first evaluation

    def __call__(self, params: Tree) -> Tensor:
        return self.outputs_and_loss(params)[1]

    def outputs_and_loss(self, params: Tree) -> tuple[Any, Tensor]:
        """The outputs of the model, and the scalar loss."""
        batch = self.batch.to(device_of(params))
        with self.call.substitution(params):
            outputs = self._outputs(params, batch)
            return outputs, self._loss(outputs, batch)

    def outputs(self, params: Tree) -> Any:
        """The outputs of the model for the inputs of the batch."""
        with self.call.substitution(params):
            return self._outputs(params, self.batch.to(device_of(params)))

    def loss(self, outputs: Any) -> Tensor:
        """The scalar loss as a function of the outputs alone."""
        if self.call.read_by_loss:
            raise _reads_parameters(self.call.read_by_loss)
        found: list[Tensor] = []
        map_outputs(lambda tensor: found.append(tensor) or tensor, outputs)
        return self._loss(outputs, self.batch.to(found[0].device))

    def _outputs(self, params: Tree, batch: Batch) -> Any:
        with (self.around or Nothing()).model(batch.targets):
            return self.call(params, batch.inputs)

    def _loss(self, outputs: Any, batch: Batch) -> Tensor:
        targets = batch.targets
        plain = targets.targets if isinstance(targets, WeightedTargets) else targets
        with (self.around or Nothing()).loss(targets):
            return self.loss_of(outputs, plain)


def _reads_parameters(names: tuple[str, ...]) -> FunctionError:
    return FunctionError(
        expected="a loss of the outputs and the targets alone, as a Gauss-Newton matrix needs it",
        got=f"a loss that also reads the parameters {', '.join(map(repr, names[:3]))}"
        + (", ..." if len(names) > 3 else ""),
        remedy="Give an L2 penalty as weight_decay=; of any other, the Hessian is what there is: "
        "hesse.hessian_operator(risk, params).",
    )
