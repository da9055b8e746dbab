# SPDX-License-Identifier: Apache-2.0
r"""Weights for the examples of a loss, put where it calls the loss functions of torch.

Such a function takes a mean or a sum over rows. Within `WeightedRows` it is called without
reduction, and what it would have returned is put together with the weights of the examples:

$$ \frac{\sum_i w_{n(i)}\, l_i}{\sum_i d_i} \quad\text{for}\quad \frac{\sum_i l_i}{\sum_i d_i} $$

with n(i) the example of row i and d_i what row i counts in a mean, which the weights leave alone.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hesse.ad.examples import Axis
from hesse.ad.likelihoods.seen import counts_of
from hesse.data.batches import Batch
from hesse.data.reduction import agree, rounding_tolerance
from hesse.data.selection import WeightedTargets, count_examples
from hesse.errors import FunctionError
from hesse.risk.call import Around, BatchLoss
from hesse.risk.nearby import evaluated_nearby
from hesse.risk.slices import axes_of_examples, cannot_be_cut
from hesse.vectors.space import Space, Tree

_LOSSES = {
    function: inspect.signature(function)
    for function in (
        F.cross_entropy,
        F.nll_loss,
        F.mse_loss,
        F.binary_cross_entropy_with_logits,
        F.binary_cross_entropy,
        F.poisson_nll_loss,
        F.gaussian_nll_loss,
        F.l1_loss,
        F.smooth_l1_loss,
        F.huber_loss,
        F.soft_margin_loss,
    )
}


class Unreduced(TorchFunctionMode):
    """Within it, `rows` is given what losses of torch compute for each row, and returns others."""

    def rows(self, rows: Tensor) -> Tensor:
        """The rows to be reduced in the place of these."""
        raise NotImplementedError

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`."""
        kwargs = kwargs or {}
        if func not in _LOSSES:
            return func(*args, **kwargs)
        bound = _LOSSES[func].bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        rows = func(**{**arguments, "reduction": "none"})
        changed = self.rows(rows)
        if arguments["reduction"] == "none":
            return changed
        if arguments["reduction"] == "sum":
            return changed.sum()
        return changed.sum() / counts_of(func, arguments, rows).sum()


class NotedRows(Unreduced):
    """Within it, the rows are noted."""

    def __init__(self, noted: list[Tensor]) -> None:
        super().__init__()
        self._noted = noted

    def rows(self, rows: Tensor) -> Tensor:
        self._noted.append(rows)
        return rows


class WeightedRows(Unreduced):
    """Within it, a row counts as often as its example weighs."""

    def __init__(self, weights: Tensor, axes: tuple[Axis, ...]) -> None:
        super().__init__()
        self._weights, self._axes = weights, iter(axes)

    def rows(self, rows: Tensor) -> Tensor:
        axis = next(self._axes, None)
        if axis is None:
            raise FunctionError(
                expected="a loss that calls the same loss functions of torch for every batch",
                got="one more of them than for the first batch",
                remedy="Give each batch the same form.",
            )
        return rows * axis.spread(self._weights, rows)


@dataclass(frozen=True)
class Noting:
    """Notes the rows of the model and those of the loss."""

    in_model: list[Tensor]
    in_loss: list[Tensor]

    def model(self, targets: Any) -> AbstractContextManager[Any]:
        """Note the rows of the model."""
        return NotedRows(self.in_model)

    def loss(self, targets: Any) -> AbstractContextManager[Any]:
        """Note the rows of the loss."""
        return NotedRows(self.in_loss)


@dataclass(frozen=True)
class Weighting(Around):
    """Where the examples are in the rows of each loss function that the model and the loss call."""

    in_model: tuple[Axis, ...]
    in_loss: tuple[Axis, ...]

    def model(self, targets: Any) -> AbstractContextManager[Any]:
        """Weigh the rows of the model."""
        return self._context(targets, self.in_model)

    def loss(self, targets: Any) -> AbstractContextManager[Any]:
        """Weigh the rows of the loss."""
        return self._context(targets, self.in_loss)

    def _context(self, targets: Any, axes: tuple[Axis, ...]) -> AbstractContextManager[Any]:
        if not isinstance(targets, WeightedTargets):
            return nullcontext()
        return WeightedRows(targets.weights, axes)

    @staticmethod
    def of(
        loss_of: Callable[[Batch], BatchLoss], params: Tree, batch: Batch, name: str
    ) -> Weighting:
        """How to weigh the examples of a loss with this name, found out on a batch of it.

        Raises:
            FunctionError: weights do not scale the loss, or it calls none of these functions.
        """
        noted: list[Noting] = []

        def rows(params: Tree, batch: Batch) -> list[Tensor]:
            noting = Noting([], [])
            replace(loss_of(batch), around=noting)(params)
            noted.append(noting)
            return [*noting.in_model, *noting.in_loss]

        axes = axes_of_examples(rows, params, batch)
        if axes is None:
            raise cannot_be_cut()
        if not axes:
            raise _refused(f"{name}, in which none of them is called")
        n = len(noted[0].in_model)
        weighting = Weighting(axes[:n], axes[n:])
        dtypes = {part.dtype for part in (*noted[0].in_model, *noted[0].in_loss)}
        rtol = max(map(rounding_tolerance, {*dtypes, *Space.of(params).dtypes}))
        _check(loss_of, weighting, params, batch, name, rtol)
        return weighting


def _check(
    loss_of: Callable[[Batch], BatchLoss],
    weighting: Weighting,
    params: Tree,
    batch: Batch,
    name: str,
    rtol: float,
) -> None:
    """Raise unless weights of one leave the loss as it is, and weights of one half halve it."""
    point, value = evaluated_nearby(
        lambda point: float(loss_of(batch)(point).detach()), params, math.isfinite
    )
    number = count_examples(batch)
    for weight in (1.0, 0.5):
        weights = torch.full((number,), weight, dtype=torch.float64)
        targets = WeightedTargets(batch.targets, weights)
        weighted = replace(loss_of(replace(batch, targets=targets)), around=weighting)
        if not agree(float(weighted(point).detach()), weight * value, rtol):
            raise _refused(f"{name}, which is something else than a mean or a sum of their rows")


@dataclass(frozen=True)
class _Ignoring:
    """The weight of a batch whatever its examples weigh."""

    weigh: Callable[..., float]

    @property
    def reads_targets(self) -> bool:
        """As of the weight itself."""
        return getattr(self.weigh, "reads_targets", False)

    def __call__(self, inputs: Any, targets: Any, *count: Any) -> float:
        plain = targets.targets if isinstance(targets, WeightedTargets) else targets
        return self.weigh(inputs, plain, *count)


def ignoring_weights(weigh: Any) -> Any:
    """The weight of a batch as a function that ignores the weights of its examples."""
    return None if weigh is None else _Ignoring(weigh)


def _refused(got: str) -> FunctionError:
    names = ", ".join(sorted(function.__name__ for function in _LOSSES))
    return FunctionError(
        expected=f"a loss that takes a mean or a sum by functions of torch: {names}",
        got=got,
        remedy="Compute the loss by one of these; give an L2 penalty as weight_decay=. "
        "risk.subset(indices) takes any loss.",
    )
