# SPDX-License-Identifier: Apache-2.0
"""Negative log-likelihoods in sum form, of a function or of a `Risk`: what errors are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hesse.boundary import warn
from hesse.curvature.fisher import fisher_operator, gradient_covariance_operator
from hesse.curvature.hessian import hessian_operator
from hesse.curvature.jacobian import jacobian_operator
from hesse.curvature.operator import CurvatureOperator
from hesse.errors import ArgumentError, FunctionError, StructureError
from hesse.operators.algebra import LinearOperator
from hesse.ranks import Ranks, alike
from hesse.risk.risk import Risk
from hesse.vectors.space import Space, Tree


class Likelihood(ABC):
    """l(theta) = sum_i l_i(theta) at a point, with scores s_i = dl_i/dtheta."""

    space: Space
    params: Tree

    @property
    @abstractmethod
    def hessian(self) -> LinearOperator:
        """The observed information, the Hessian of the sum."""

    @property
    @abstractmethod
    def fisher(self) -> LinearOperator:
        """The expected information."""

    @property
    @abstractmethod
    def gradient(self) -> Tensor:
        """The sum of the scores."""

    @property
    def ranks(self) -> Ranks | None:
        """The processes that share the observations."""
        return None

    @property
    @abstractmethod
    def counts(self) -> list[int]:
        """The number of observations of each process."""

    @property
    def num_observations(self) -> int:
        """n."""
        return sum(self.counts)

    @property
    def here(self) -> slice:
        """The places of the observations of this process among all."""
        rank = 0 if self.ranks is None else self.ranks.rank
        start = sum(self.counts[:rank])
        return slice(start, start + self.counts[rank])

    @abstractmethod
    def total(self, theta: Tensor) -> Tensor:
        """l at a flat vector, which can be differentiated."""

    @abstractmethod
    def spread(self, Y: Tensor, clusters: Tensor | None) -> Tensor:
        """Y' (sum_i s_i s_i') Y, shape (m, m); with clusters the scores of each are added first.

        Args:
            clusters: those of all observations, numbered from 0.
        """


@dataclass(frozen=True)
class FunctionLikelihood(Likelihood):
    """Of a function of the parameters: the terms l_i as a vector, or their sum as a scalar."""

    f: Callable[[Any], Tensor]
    params: Tree
    space: Space

    @cached_property
    def value(self) -> Tensor:
        """f at the point."""
        with torch.no_grad():
            value = self.f(self.space.copy(self.params))
        if not isinstance(value, Tensor) or value.ndim > 1:
            shape = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.60}"
            raise FunctionError(
                expected="f(params) to be the negative log-likelihood: a scalar, or a vector (n,) "
                "with a term for each observation",
                got=shape,
                remedy="Add its terms up over everything but the observations.",
            )
        return value

    @cached_property
    def _hessian(self) -> CurvatureOperator:
        _ = self.value
        return hessian_operator(lambda params: self.f(params).sum(), self.params)

    @property
    def hessian(self) -> LinearOperator:
        return self._hessian

    def total(self, theta: Tensor) -> Tensor:
        return self.f(self.space.unflatten(theta)).sum()

    @property
    def fisher(self) -> LinearOperator:
        raise StructureError(
            expected="a hesse.Risk for information='fisher', whose loss says the distribution",
            got="a function of the parameters",
            remedy="Build hesse.Risk(model, loss, data), or use information='observed'.",
        )

    @property
    def gradient(self) -> Tensor:
        return self._hessian.flat_gradient

    @property
    def counts(self) -> list[int]:
        if self.value.ndim == 1:
            return [len(self.value)]
        raise FunctionError(
            expected="f(params) to be a vector with a term for each observation, for robust errors",
            got="a scalar",
            remedy="Leave out the sum over the observations in f, or give a hesse.Risk.",
        )

    def spread(self, Y: Tensor, clusters: Tensor | None) -> Tensor:
        rows = jacobian_operator(self.f, self.params)._matmat(Y)
        if clusters is not None:
            sums = rows.new_zeros(int(clusters.max()) + 1, rows.shape[1])
            rows = sums.index_add(0, clusters, rows)
        return rows.T @ rows


@dataclass(frozen=True)
class RiskLikelihood(Likelihood):
    """Of a `Risk` whose loss is a negative log-likelihood; a mean is multiplied by its weight."""

    risk: Risk
    params: Tree
    space: Space

    @property
    def scale(self) -> float:
        """What turns the risk into a sum."""
        return self.risk.share.weight if self.risk.averages else 1.0

    def total(self, theta: Tensor) -> Tensor:
        return self.scale * self.risk(self.space.unflatten(theta))

    @cached_property
    def _hessian_of_risk(self) -> CurvatureOperator:
        return hessian_operator(self.risk, self.params)

    @property
    def hessian(self) -> LinearOperator:
        return self.scale * self._hessian_of_risk

    @property
    def fisher(self) -> LinearOperator:
        return self.scale * fisher_operator(self.risk, self.params)

    @property
    def gradient(self) -> Tensor:
        return self.scale * self._hessian_of_risk.flat_gradient

    @property
    def ranks(self) -> Ranks | None:
        return self.risk.ranks

    @property
    def counts(self) -> list[int]:
        return self._counts

    @cached_property
    def _counts(self) -> list[int]:
        with alike(self.ranks):
            here = sum(_examples(batch.inputs) for _, batch in self.risk.local.batches())
        return [here] if self.ranks is None else [int(n) for (n,) in self.ranks.gather(here)]

    def spread(self, Y: Tensor, clusters: Tensor | None) -> Tensor:
        n = self.num_observations
        is_plain = not self.risk.averages or abs(self.scale - n) <= 1e-9 * n
        if clusters is None and is_plain and not self.risk.is_weighted:
            covariance = gradient_covariance_operator(self.risk, self.params)
            return n * (Y.T @ covariance._matmat(Y))
        if clusters is None:  # a score has the weight of its example, and S has its square
            each = self.risk.per_example
            rows = each.jvp(self.params, Y) * (self.scale / each.number)
            spread = rows.T @ rows
            return spread if self.ranks is None else self.ranks.total(spread)
        mine = clusters[self.here]
        scores = [self._score(mine == c) @ Y for c in range(int(clusters.max()) + 1)]
        rows = torch.stack(scores)
        return rows.T @ rows

    def _score(self, chosen: Tensor) -> Tensor:
        """The sum of the scores of some examples, without the weight decay."""
        part = RiskLikelihood(self.risk.subset(chosen), self.params, self.space)
        decay = self.risk.weight_decay * self.space.flatten(self.params)
        return part.gradient - part.scale * decay


def likelihood_at(f: Callable[[Any], Tensor] | Risk, params: Tree | None) -> Likelihood:
    """The likelihood of a function or of a `Risk`; warns where a penalty is in it."""
    if isinstance(f, Risk):
        point = f.share.whole(f.params if params is None else params)
        with alike(f.ranks):
            f.check_at(point)
        if f.weight_decay:
            warn(
                f"The risk has a weight decay of {f.weight_decay:g}. Standard errors are those of "
                "maximum likelihood: the penalised estimate is biased, and its curvature counts "
                "the penalty as data. Take them at a minimum without it."
            )
        return RiskLikelihood(f, point, Space.of(point, what="params"))
    if not callable(f):
        raise StructureError(
            expected="f to be a function of the parameters, or a hesse.Risk",
            got=type(f).__name__,
            remedy="Give params -> the negative log-likelihood.",
        )
    if params is None:
        raise ArgumentError(
            expected="params, the estimate",
            got="none",
            remedy="Give the parameters at the minimum.",
        )
    return FunctionLikelihood(f, params, Space.of(params, what="params"))


def _examples(inputs: Any) -> int:
    """The number of rows of the first tensor of a batch."""
    leaves = Space.of(inputs).shapes if not isinstance(inputs, Tensor) else [inputs.shape]
    return int(leaves[0][0])
