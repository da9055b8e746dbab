# SPDX-License-Identifier: Apache-2.0
"""The losses of the examples of a batch as one function of the parameters, in two ways.

By a factor for each example, in which the loss of the batch is linear: its derivative in the
factors is the vector of losses, one step back through the loss. Where a loss is not made of loss
functions of torch, which know their rows, by the loss of each example as a batch of its own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from hesse.ad.double_backward import gradient_of
from hesse.ad.summands import Summand
from hesse.boundary import warn
from hesse.data.batches import Batch, Batches, flatten_batch
from hesse.data.reduction import agree, rounding_tolerance
from hesse.data.selection import WeightedTargets, count_examples
from hesse.data.slicing import slice_batch
from hesse.data.trees import tensors
from hesse.errors import FallbackWarning, FunctionError
from hesse.risk.call import BatchLoss, device_of
from hesse.risk.nearby import evaluated_nearby
from hesse.risk.sharing import Share
from hesse.vectors.shards import is_sharded
from hesse.vectors.space import Space, Tree


class RiskOfExamples(Protocol):
    """What is needed of a `Risk`."""

    data: Batches

    @property
    def averages(self) -> bool: ...

    @property
    def is_weighted(self) -> bool: ...

    @property
    def loss_name(self) -> str: ...

    @property
    def share(self) -> Share: ...

    @property
    def params(self) -> Tree: ...

    def weighted(self, weights: Tensor, at: Tree | None = None) -> Any: ...

    def check_at(self, params: Tree) -> None: ...

    def batches(self) -> Iterator[tuple[float, Batch]]: ...

    def loss_of(self, batch: Batch) -> BatchLoss: ...


@dataclass(frozen=True)
class LossesOfExamples(ABC):
    """N times what each example of a batch adds to a risk."""

    risk: RiskOfExamples
    number: int
    """N, of all processes that share the data."""

    @staticmethod
    def of(risk: RiskOfExamples, number: int, here: int, params: Tree) -> LossesOfExamples:
        """Those of a risk, by factors if it can be weighted; `here` of them are in this process.

        Raises:
            FunctionError: it cannot, and the losses of single examples do not add up to it.
        """
        if risk.is_weighted:
            return ByFactors(risk, number)
        try:
            at = params if any(map(is_sharded, tensors(risk.params))) else None
            return ByFactors(risk.weighted(torch.ones(here), at), number)
        except FunctionError:
            single = OneByOne(risk, number)
            if not single.add_up(params):
                raise
        warn(
            f"{risk.loss_name} is not made of loss functions of torch: its examples are evaluated "
            "one at a time, which is slower.",
            FallbackWarning,
        )
        return single

    @abstractmethod
    def summand(self, coefficient: float, batch: Batch) -> Summand:
        """The vector of losses of a batch, whose mean has this coefficient in the risk."""

    def summands(self) -> Iterator[Summand]:
        """The vectors of all batches."""
        for coefficient, batch in self.risk.batches():
            yield self.summand(coefficient, batch)

    def parts(self, batch: Batch, bounds: list[int]) -> Iterator[tuple[float, Batch]]:
        """The examples from each bound to the next, with their coefficients in the risk."""
        total = self.risk.share.weight
        for part in slice_batch(batch, bounds, self.risk.data.weigh):
            yield (part.weight / total if self.risk.averages else 1.0), part


@dataclass(frozen=True)
class ByFactors(LossesOfExamples):
    """Of a weighted risk."""

    def summand(self, coefficient: float, batch: Batch) -> Summand:
        targets, weights = batch.targets
        factors = weights.double() * (coefficient * self.number)
        batch = replace(batch, targets=WeightedTargets(targets, factors))
        data, key = flatten_batch(batch)
        return Summand(1.0, _InFactors(self.risk.loss_of(batch)), data, key)


@dataclass(frozen=True)
class _InFactors:
    """The derivative of the loss of a batch in factors for its examples, at one."""

    loss: BatchLoss

    knows_its_leaves = True  # tested with the risk

    def __call__(self, params: Tree) -> Tensor:
        batch = self.loss.batch.to(device_of(params))
        targets, factors = batch.targets
        w = torch.ones_like(factors).requires_grad_()
        batch = replace(batch, targets=WeightedTargets(targets, w * factors))
        value = replace(self.loss, batch=batch)(params)
        return gradient_of(value, [w], create_graph=True)[0]


@dataclass(frozen=True)
class OneByOne(LossesOfExamples):
    """Of a risk with any loss."""

    def add_up(self, params: Tree) -> bool:
        """Whether the losses of the first batch do, as those of a mean or a sum."""
        coefficient, batch = next(self.risk.batches())
        with torch.no_grad():
            point, whole = evaluated_nearby(
                lambda point: coefficient * float(self.risk.loss_of(batch)(point)),
                params,
                math.isfinite,
            )
            losses: Callable[[Tree], Tensor] = self.summand(coefficient, batch).function
            try:
                total = float(losses(point).sum()) / self.number
            except (RuntimeError, ValueError, IndexError):  # of an example without the others
                return False
        rtol = max(map(rounding_tolerance, Space.of(params).dtypes))
        return agree(total, whole, rtol)

    def summand(self, coefficient: float, batch: Batch) -> Summand:
        single = list(self.parts(batch, [*range(count_examples(batch) + 1)]))
        losses = tuple(self.risk.loss_of(example) for _, example in single)
        factors = tuple(self.number * share for share, _ in single)
        data, key = flatten_batch(batch)
        return Summand(1.0, _Stacked(losses, factors), data, (key, factors))


@dataclass(frozen=True)
class _Stacked:
    """The losses of batches, as a vector."""

    losses: tuple[BatchLoss, ...]
    factors: tuple[float, ...]

    knows_its_leaves = True  # tested with the risk

    def __call__(self, params: Tree) -> Tensor:
        pairs = zip(self.factors, self.losses, strict=True)
        zero = torch.zeros((), device=device_of(params))  # of an example that the loss ignores
        return torch.stack([c * loss(params) if c else zero.double() for c, loss in pairs])
