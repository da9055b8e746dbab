# SPDX-License-Identifier: Apache-2.0
"""`LikelihoodSum`: a risk as a sum of likelihoods, with the random numbers of their draws."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from hesse.ad.double_backward import twice_differentiable
from hesse.ad.examples import Axis, Examples
from hesse.ad.fisher import Blocks, LikelihoodLoss, seen
from hesse.ad.likelihoods.seen import SeenLoss
from hesse.ad.quadratic import Quadratic
from hesse.ad.summands import Summand
from hesse.ad.variables import BoundFunction, Variables, tracked
from hesse.curvature.example_weights import ExampleWeights, checked_total
from hesse.data.slicing import num_examples
from hesse.engine.data_version import DataVersion
from hesse.engine.program_cache import ProgramCache
from hesse.errors import DataError
from hesse.result import OneLine
from hesse.risk.call import BatchLoss
from hesse.risk.risk import Risk
from hesse.vectors.space import Space, Tree


@dataclass(frozen=True)
class Draws:
    """The uniform numbers from which targets are drawn: the same at every sweep and every point."""

    samples: int
    seed: int

    def uniform(self, index: int, shapes: list[torch.Size], like: Tensor) -> tuple[Tensor, ...]:
        """Numbers for the likelihoods of a batch, shape (samples, *noise_shape) each."""
        generator = torch.Generator().manual_seed((self.seed + index) % 2**63)
        dtype = torch.promote_types(like.dtype, torch.float32)
        return tuple(
            torch.rand(self.samples, *shape, generator=generator, dtype=dtype).to(like.device)
            for shape in shapes
        )


@dataclass(frozen=True, repr=False)
class LikelihoodSum(OneLine):
    """The summands of a risk, each of which knows what a Fisher matrix needs.

    Args:
        risk: the risk.
        params: a point, at which it is seen how many random numbers a batch takes.
        blocks: which matrix of the likelihoods is meant. That of "gradients" is of the mean over
            all examples, without the weight decay, even if the loss of the risk adds up.
        draws: how targets are drawn; None if they are not.
        axes: where the examples are in each likelihood, if rows are summed over examples.
        total: what a mean over all examples divides by, if other processes have some of them.
    """

    risk: Risk
    params: Tree
    blocks: Blocks
    draws: Draws | None = None
    axes: tuple[Axis, ...] | None = None
    total: float | None = None
    _shapes: dict[Hashable, list[torch.Size]] = field(default_factory=dict, compare=False)
    _uniform: dict[int, tuple[DataVersion, tuple[Tensor, ...]]] = field(
        default_factory=dict, compare=False
    )

    def __repr__(self) -> str:
        draws = "" if self.draws is None else f", {self.draws.samples} draws"
        return f"{self.risk!r}{draws}"

    def __reduce__(self):  # the numbers are drawn again from their seed
        known = self.risk, self.params, self.blocks, self.draws, self.axes, self.total
        return LikelihoodSum, known

    @property
    def weight_decay(self) -> float:
        """That of the risk, which a mean of gradients leaves out."""
        return 0.0 if self.blocks == "gradients" else self.risk.weight_decay

    @property
    def num_summands(self) -> int:
        """As of the risk."""
        return self.risk.num_summands

    @property
    def holds_data(self) -> bool:
        """As of the risk."""
        return self.risk.holds_data

    @property
    def programs(self) -> ProgramCache:
        """Those of the risk."""
        return self.risk.programs

    def check_at(self, params: Tree) -> None:
        """As of the risk."""
        self.risk.check_at(params)

    def summands(self) -> Iterator[Summand]:
        """Those of the risk."""
        is_mean = self.blocks == "gradients"
        scale = 1.0 / checked_total(self._total()) if is_mean else 1.0
        for index, summand in enumerate(self.risk.summands()):
            if not isinstance(summand.function, Quadratic):
                yield self._of_batch(index, summand, scale)
            elif not is_mean:
                yield summand

    def _total(self) -> float:
        return self.total_here() if self.total is None else self.total

    def total_here(self) -> float:
        """What the coefficients of a mean over all examples are divided by, of the risk alone."""
        if self._weights is not None:
            batches = (s for s in self.risk.summands() if not isinstance(s.function, Quadratic))
            return self._weights.total(batches)
        if self.risk.averages:
            return float(self.risk.data.total_weight / self.risk.share.weight)
        return float(sum(_count(batch) for _, batch in self.risk.batches()))

    @cached_property
    def _weights(self) -> ExampleWeights | None:
        """Of a mean of gradients where examples have weights of their own."""
        if self.blocks != "gradients" or not self.risk.is_weighted:
            return None
        assert self.axes is not None
        seen = partial(seen_at, self.risk, self.params, blocks=self.blocks)
        return ExampleWeights(self.axes, self.risk.averages, seen)

    def _of_batch(self, index: int, summand: Summand, scale: float) -> Summand:
        uniform = () if self.draws is None else self._numbers(index, summand, self.draws)
        given = None if self._weights is None else self._weights.of(index, summand)
        examples = None
        if self.axes is not None:
            number = _count(summand.function.batch)
            examples = Examples(number, self.axes, self.risk.averages, given)
        name, blocks = self.risk.loss_name, self.blocks
        loss = LikelihoodLoss(summand.function, name, blocks, uniform, examples)
        return replace(
            summand,
            coefficient=scale * summand.coefficient,
            function=loss,
            data=(*summand.data, *uniform, *([] if given is None else [given])),
        )

    def _numbers(self, index: int, summand: Summand, draws: Draws) -> tuple[Tensor, ...]:
        """The random numbers of a batch, which must be the one that had this index before."""
        version, uniform = self._uniform.get(index, (None, None))
        if version is None or uniform is None:
            version = DataVersion.of(summand.data)
            form = tuple(tensor.shape for tensor in summand.data)
            if form not in self._shapes:
                loss = seen_at(self.risk, self.params, summand.function)
                self._shapes[form] = [each.noise_shape for each in loss.likelihoods]
            like = Space.of(self.params).leaves(self.params)[0]
            uniform = draws.uniform(index, self._shapes[form], like)
            self._uniform[index] = version, uniform
        elif not version.matches(summand.data):
            raise DataError(
                expected="the same batches in the same order at every sweep: each has its own "
                "draws",
                got=f"other data in batch {index} than at the first sweep",
                remedy="Give a list of batches, as list(loader) does, or a loader with "
                "shuffle=False; kind='exact' and 'empirical' take them in any order.",
            )
        return uniform


def seen_at(risk: Risk, params: Tree, function: BatchLoss, blocks: Blocks = "exact") -> SeenLoss:
    """The likelihoods of a batch at these parameters; of "gradients" all losses with rows."""
    space = Space.of(params, what="params")
    variables = Variables.of(space.copy(params), space)
    loss = BoundFunction(LikelihoodLoss(function, risk.loss_name, blocks), variables)
    with twice_differentiable():
        return seen(loss, tracked(variables.x))


def _count(batch: Any) -> int:
    number = num_examples(batch)
    return 1 if number is None else number
