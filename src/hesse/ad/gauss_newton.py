# SPDX-License-Identifier: Apache-2.0
r"""Products with the generalised Gauss-Newton matrix J' H_L J of a loss L(z(x)).

With outputs z = z(x), Jacobian J = dz/dx and the Hessian H_L of the loss in the outputs,

$$ \nabla^2 (L \circ z) = J^T H_L J + \sum_k \frac{\partial L}{\partial z_k} \nabla^2 z_k . $$

The first term is positive semi-definite for a convex loss; where the outputs are linear in x or the
loss is at its minimum it is the Hessian. A product costs 4 forward passes' worth of matrix
products, 1.33 gradients: those of J v and of J'u (see `jacobian`).

Source: Schraudolph 2002, doi:10.1162/08997660260028683.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hesse.ad.by_jacobian import ByJacobian
from hesse.ad.double_backward import differentiating
from hesse.ad.likelihoods.seen import LikelihoodCalls, NotedCall, seen_loss
from hesse.ad.loss import LinearLossError, LossHessian
from hesse.ad.torch_calls import TorchCalls
from hesse.ad.variables import BoundFunction, Leaves, tracked
from hesse.errors import FunctionError


class GaussNewtonGraph(ByJacobian):
    """J' H_L J at x, with the value and the gradient; retains the graphs of z, J'u and the loss."""

    def __init__(self, f: BoundFunction, x: Leaves) -> None:
        with differentiating():
            leaves = tracked(x)
            with TorchCalls(), LikelihoodCalls() as noted:
                outputs = f.outputs(leaves)
            try:
                self._loss = LossHessian(outputs, f.loss)
            except LinearLossError:
                if not noted.calls:
                    raise
                with TorchCalls():
                    self._loss = _loss_in_model(f.loss(outputs), noted.calls, leaves)
            self._loss.check_reads_outputs_only(leaves)
        super().__init__(self._loss.tensors, leaves, self._loss.slope)

    @property
    def outputs(self) -> list[Tensor]:
        """L(z(x)), in a list."""
        return [self._loss.value]

    @property
    def gradient(self) -> list[Tensor]:
        """J' dL/dz."""
        return self._jacobian.pulled_back

    @property
    def needs_check(self) -> bool:
        """Whether the loss may be flat; a `Risk` keeps its parameters where a model runs again."""
        return self._loss.may_be_flat

    def check(self) -> None:
        """Warn if the loss has no curvature."""
        if self._loss.may_be_flat:
            self._loss.check_flat()

    @property
    def custom_function(self) -> str | None:
        """A user's `autograd.Function` on the way to z or the loss; it has been checked."""
        return super().custom_function or self._loss.custom_function

    @property
    def retained(self) -> list[Tensor]:
        """The outputs, J'u and the slope of the loss, with their graphs."""
        return [*super().retained, *self._loss.retained]

    def apply(self, quantity: str, direction: Leaves) -> list[Tensor] | Tensor:
        """J' H_L J v; or v' J' H_L J v."""
        self._loss.check_custom_function()
        return self.between(quantity, direction, self._loss.product)


def _loss_in_model(value: Tensor, calls: Sequence[NotedCall], x: list[Tensor]) -> LossHessian:
    """The loss that the model computed itself, as a function of what its likelihoods are given."""
    try:
        seen = seen_loss(value, calls, x)
    except FunctionError as error:
        raise FunctionError(
            expected="a model whose own loss is a weighted sum of losses of torch",
            got=error.got,
            remedy="Let the model return what goes into the loss (the logits, the prediction), and "
            "the loss function compute the loss from it.",
        ) from error
    loss = LossHessian(seen.z, seen.of_parameters)
    loss.value = seen.value
    return loss
