# SPDX-License-Identifier: Apache-2.0
"""Predictions of the linearised model: f ~ N(f_MAP, J P^-1 J') at the inputs of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hesse.apps.uncertainty.last_layer import LastLayer
from hesse.apps.uncertainty.links import Link, bridge, inverse_link, normal_draws, probit
from hesse.apps.uncertainty.outputs import Outputs
from hesse.apps.uncertainty.posterior import Posterior
from hesse.apps.uncertainty.precision import ExactPrecision
from hesse.data.batches import Batch
from hesse.errors import ArgumentError
from hesse.result import Result

DRAWS = 100
"""Draws of a predictive distribution, where none are asked for."""


class _Normal(NamedTuple):
    mean: Tensor
    """(Q, ...), the outputs of the model."""
    variance: Tensor
    """Of what is observed: that of the outputs plus the noise s^2."""


class Normal(Result, _Normal):
    """The predictive distribution of a regression, (mean, variance): independent numbers."""


@dataclass(frozen=True)
class Predictive:
    """What a posterior says of outputs."""

    posterior: Posterior
    outputs: Outputs
    last_layer: LastLayer | None = None

    @property
    def is_exact(self) -> bool:
        """Whether P has an inverse, so that nothing is solved."""
        return isinstance(self.posterior.precision, ExactPrecision)

    def at(self, posterior: Posterior) -> Predictive:
        """The same outputs with another posterior."""
        return Predictive(posterior, self.outputs, self.last_layer)

    # -- Covariances -------------------------------------------------------------------------------

    def covariances(self, x: Any) -> tuple[Tensor, Tensor]:
        """f (Q, ...) and J P^-1 J', (Q, D, D), D the number of outputs of an example."""
        if self.last_layer is not None:
            return _together(self._of_features(batch) for batch in self.outputs.batches(x))
        return _together(self._of_rows(batch) for batch in self.outputs.small_batches(x))

    def _of_rows(self, batch: Batch) -> tuple[Tensor, Tensor]:
        f, J = self.outputs.rows(batch)
        q, D, s = J.shape
        X = self.posterior.precision.solved(J.reshape(q * D, s).T.contiguous())
        C = torch.einsum("qds,qes->qde", J, X.T.reshape(q, D, s))
        return f, (C + C.mT) / 2

    def _of_features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        assert self.last_layer is not None
        outputs = self.outputs
        f = outputs.at(batch)
        phi = self.last_layer.features(outputs.risk, outputs.chosen.params, batch)
        return f, self._feature_covariance(phi)

    @cached_property
    def _feature_covariance(self) -> Callable[[Tensor], Tensor]:
        precision = self.posterior.precision
        assert self.last_layer is not None
        assert isinstance(precision, ExactPrecision)
        return self.last_layer.covariance(precision)

    def variances(self, x: Any, draws: int | None) -> tuple[Tensor, Tensor]:
        """f and the variances of its entries, both (Q, ...); from draws, if there are any."""
        if draws is not None:
            f, pushed = self.pushed(x, draws)
            return f, pushed.square().mean(0)
        f, C = self.covariances(x)
        return f, C.diagonal(dim1=1, dim2=2).reshape(f.shape)

    # -- Draws -------------------------------------------------------------------------------------

    def pushed(self, x: Any, count: int) -> tuple[Tensor, Tensor]:
        """f (Q, ...) and J times draws of the parameters, (count, Q, ...)."""
        X = self.posterior.precision.draws(count)
        pairs = [self.outputs.pushed(batch, X) for batch in self.outputs.batches(x)]
        return torch.cat([f for f, _ in pairs]), torch.cat([z for _, z in pairs], 1)

    def drawn_outputs(self, x: Any, count: int) -> Tensor:
        """(count, Q, ...) from the distribution of the outputs of the linearised model."""
        if self.is_exact:
            f, C = self.covariances(x)
            return normal_draws(f, C, count, self.posterior.solver.generator)
        f, pushed = self.pushed(x, count)
        return f + pushed

    def through_the_network(self, x: Any, count: int) -> Tensor:
        """(count, Q, ...): outputs of the model itself at draws of its parameters."""
        chosen, outputs = self.outputs.chosen, self.outputs
        theta = chosen.whole.flatten(chosen.params).detach()
        draws = []
        for column in self.posterior.precision.draws(count).T:
            params = chosen.whole.unflatten(theta + chosen.embed(column.contiguous()))
            draws.append(torch.cat([outputs.at(batch, params) for batch in outputs.batches(x)]))
        return torch.stack(draws)

    # -- Predictive distributions ------------------------------------------------------------------

    def map(self, x: Any) -> Tensor:
        """f, (Q, ...)."""
        return torch.cat([self.outputs.at(batch) for batch in self.outputs.batches(x)])

    def predict(self, x: Any, link: Link, draws: int | None) -> Tensor | Normal:
        """Probabilities of classes, (Q, ...), or of a regression a `Normal`."""
        if self.posterior.observations.kind == "gaussian":
            return self._normal(x, link, draws)
        kind, dim = self.posterior.observations.kind, self.outputs.class_dim
        if link == "probit":
            return probit(*self.variances(x, draws), kind, dim)
        if link == "bridge":
            return bridge(*self._for_bridge(x))
        many = self.drawn_outputs if link == "draws" else self.through_the_network
        return inverse_link(many(x, draws or DRAWS), kind, dim + 1).mean(0)

    def _normal(self, x: Any, link: Link, draws: int | None) -> Normal:
        noise = self.posterior.noise
        assert noise is not None
        if link == "network":
            z = self.through_the_network(x, draws or DRAWS)
            return Normal(z.mean(0), z.var(0) + noise**2)
        if link == "bridge":
            raise _no_bridge("a regression")
        count = (draws or DRAWS) if link == "draws" else draws
        f, variance = self.variances(x, count)
        return Normal(f, variance + noise**2)

    def _for_bridge(self, x: Any) -> tuple[Tensor, Tensor]:
        f, C = self.covariances(x)
        if self.posterior.observations.kind == "bernoulli" or f.ndim != 2:
            raise _no_bridge(f"outputs {tuple(f.shape)}")
        return f, C


def _no_bridge(got: str) -> ArgumentError:
    return ArgumentError(
        expected="a row of logits for each example, for link='bridge'",
        got=got,
        remedy="Leave out link=, or take 'draws'.",
    )


def _together(pairs: Any) -> tuple[Tensor, Tensor]:
    first, second = zip(*pairs, strict=True)
    return torch.cat(first), torch.cat(second)
