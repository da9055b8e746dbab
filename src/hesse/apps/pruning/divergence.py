# SPDX-License-Identifier: Apache-2.0
"""How far the outputs of a network are from those that it had."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hesse.ad.double_backward import derivative
from hesse.ad.loss import map_outputs
from hesse.ad.variables import Leaves, Variables, tracked
from hesse.curvature.point_product import kept_share
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
    _kept: KeptOutputs = field(default_factory=lambda: KeptOutputs(), repr=False)

    def value(self, risk: Risk, params: Tree) -> float:
        """D on the data of this risk."""
        space = Space.of(params)
        d = space.flatten(params) - space.flatten(self.dense)

        def of_data() -> Tensor:
            pairs = zip(_losses(risk), self._before(risk), strict=True)
            with torch.no_grad():
                parts = [c * float(self._part(loss, params, before)) for (c, loss), before in pairs]
            return torch.tensor(sum(parts), dtype=torch.float64)

        value = float(_of_all(risk, of_data, torch.zeros((), dtype=torch.float64)))
        return value + 0.5 * risk.weight_decay * space.inner(d, d)

    def gradient(self, risk: Risk, params: Tree) -> Tensor:
        """Its gradient, a flat vector."""
        space = Space.of(params)
        variables = Variables.of(space.copy(params), space)

        def of_data() -> Tensor:
            result = space.zeros()
            for coefficient, loss in _losses(risk):
                leaves = tracked(variables.x)
                part = self._part(loss, variables.tree(leaves), self._dense(loss))
                result += coefficient * variables.flatten(derivative(part, leaves))
            return result

        decay = risk.weight_decay * (space.flatten(params) - space.flatten(self.dense))
        return decay + _of_all(risk, of_data, decay)

    def _part(self, loss: BatchLoss, params: Tree, before: DenseOutputs) -> Tensor:
        """D of one batch, without weight decay."""
        outputs, value = loss.outputs_and_loss(params)
        pairs = zip(_numbers(outputs), before.outputs, before.slope, strict=True)
        tangent = [(c * (z - z0)).sum() for z, z0, c in pairs]
        return value - before.value - torch.stack(tangent).sum()

    def _before(self, risk: Risk) -> Iterator[DenseOutputs]:
        """What the dense network gives on each batch, kept as long as there is memory."""
        kept = self._kept.of(risk)
        for place, (_, loss) in enumerate(_losses(risk)):
            if place < len(kept):
                yield kept[place]
                continue
            made = self._dense(loss)
            if place == len(kept):
                self._kept.add(made)
            yield made

    def _dense(self, loss: BatchLoss) -> DenseOutputs:
        with torch.no_grad():
            outputs = loss.outputs(self.dense)
        value, slope = _slope(loss, outputs)
        return DenseOutputs([z.detach() for z in _numbers(outputs)], value, list(slope))


class DenseOutputs(NamedTuple):
    """f_0 on one batch, L(f_0) and its gradient there."""

    outputs: list[Tensor]
    value: Tensor
    slope: list[Tensor]

    @property
    def bytes(self) -> int:
        """What it takes to keep them."""
        return sum(z.numel() * z.element_size() for z in [*self.outputs, *self.slope])


@dataclass
class KeptOutputs:
    """The outputs of the dense network on the first batches of one risk.

    As many as fit into what residuals of several batches may take by default.
    """

    risk: Risk | None = None
    batches: list[DenseOutputs] = field(default_factory=list)
    left: float = 0.0
    """Bytes."""

    def of(self, risk: Risk) -> list[DenseOutputs]:
        """Those of this risk; those of another one are given up."""
        if risk is not self.risk:
            self.risk, self.batches, self.left = risk, [], math.nan
        return self.batches

    def add(self, made: DenseOutputs) -> None:
        """Keep those of the next batch, if there is room."""
        if math.isnan(self.left):
            self.left = kept_share(made.value.device)
        if made.bytes <= self.left:
            self.left -= made.bytes
            self.batches.append(made)


def _losses(risk: Risk) -> Iterator[tuple[float, BatchLoss]]:
    """Those of the batches of this process."""
    for coefficient, batch in risk.local.batches():
        yield coefficient, risk.loss_of(batch)


def _of_all(risk: Risk, compute: Callable[[], Tensor], like: Tensor) -> Tensor:
    """What the data of this process give; the sum of what those of all do, if they share them."""
    return compute() if risk.ranks is None else risk.ranks.sum_of(compute, like)


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
