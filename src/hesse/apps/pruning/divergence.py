# SPDX-License-Identifier: Apache-2.0
"""How far the outputs of a network are from those that it had."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.ad.double_backward import derivative
from hesse.ad.loss import map_outputs
from hesse.ad.variables import Leaves, Variables, tracked
from hesse.risk.call import BatchLoss
from hesse.risk.risk import Risk
from hesse.vectors.space import Space, Tree


@dataclass(frozen=True)
class Divergence:
    r"""Of the outputs f of a network from f_0, those of the dense one, in terms of the loss L.

    $$ D(w) = L(f) - L(f_0) - \nabla L(f_0)^T (f - f_0) + \frac\lambda2 |w - w_0|^2 $$

    It and its gradient are zero at w_0, and its Gauss-Newton matrix is that of the risk everywhere.
    The targets cancel where the loss is that of an exponential family: cross entropy makes it the
    Kullback-Leibler divergence of the probabilities, a squared error the squared distance.

    Args:
        dense: w_0.
    """

    dense: Tree

    def value(self, risk: Risk, params: Tree) -> float:
        """D on the data of this risk."""
        space = Space.of(params)
        d = space.flatten(params) - space.flatten(self.dense)
        with torch.no_grad():
            parts = [c * float(self._part(loss, params)) for c, loss in _losses(risk)]
        return sum(parts) + 0.5 * risk.weight_decay * space.inner(d, d)

    def gradient(self, risk: Risk, params: Tree) -> Tensor:
        """Its gradient, a flat vector."""
        space = Space.of(params)
        variables = Variables.of(space.copy(params), space)
        result = risk.weight_decay * (space.flatten(params) - space.flatten(self.dense))
        for coefficient, loss in _losses(risk):
            leaves = tracked(variables.x)
            part = self._part(loss, variables.tree(leaves))
            result += coefficient * variables.flatten(derivative(part, leaves))
        return result

    def _part(self, loss: BatchLoss, params: Tree) -> Tensor:
        """D of one batch, without weight decay."""
        with torch.no_grad():
            before = loss.outputs(self.dense)
        value_before, slope = _slope(loss, before)
        outputs, value = loss.outputs_and_loss(params)
        pairs = zip(_numbers(outputs), _numbers(before), slope, strict=True)
        tangent = [(c * (z - z0)).sum() for z, z0, c in pairs]
        return value - value_before - torch.stack(tangent).sum()


def _losses(risk: Risk) -> Iterator[tuple[float, BatchLoss]]:
    for coefficient, batch in risk.batches():
        yield coefficient, risk.loss_of(batch)


def _slope(loss: BatchLoss, outputs: Any) -> tuple[Tensor, Leaves]:
    """L and its gradient at these outputs."""
    free: list[Tensor] = []

    def freed(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        free.extend(tracked([tensor.detach()]))
        return free[-1].view_as(free[-1])  # which a loss may change in place

    with torch.enable_grad():
        value = loss.loss(map_outputs(freed, outputs))
        return value.detach(), derivative(value, free)


def _numbers(outputs: Any) -> list[Tensor]:
    """The floating-point tensors of the outputs."""
    found: list[Tensor] = []

    def seen(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            found.append(tensor)
        return tensor

    map_outputs(seen, outputs)
    return found
