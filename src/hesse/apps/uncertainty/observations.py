# SPDX-License-Identifier: Apache-2.0
"""What the loss of a risk says about the data: which distribution, and how many observations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.ad.likelihoods.categorical import Categorical
from hesse.ad.likelihoods.entrywise import BernoulliLogits, SquaredError
from hesse.ad.likelihoods.likelihood import Likelihood
from hesse.ad.quadratic import Quadratic
from hesse.curvature.likelihood_sum import seen_at
from hesse.curvature.rank_sum import look_here, look_once
from hesse.data.selection import count_examples, total_examples
from hesse.errors import FunctionError
from hesse.risk.risk import Risk
from hesse.vectors.space import Space, Tree

Kind = Literal["categorical", "bernoulli", "gaussian"]

_KINDS: dict[type[Likelihood], Kind] = {
    Categorical: "categorical",
    BernoulliLogits: "bernoulli",
    SquaredError: "gaussian",
}


@dataclass(frozen=True)
class Observations:
    """The negative log-likelihood as M times the data part of a risk.

    A squared error is read as that of the variance 1/2, which `precision` corrects.
    """

    kind: Kind
    """The distribution of an observation, given the outputs."""
    number: float
    """M: the risk weighs every row of the likelihood 1 / M."""
    total: float
    """M times the data part of the risk: of squared errors their sum."""
    entries: float
    """How many numbers are observed, of squared errors."""

    def precision(self, noise: float | None, temperature: float) -> float:
        """The factor of `total` in the negative log-likelihood: 1 / T, or 1 / (2 s^2 T)."""
        return (1.0 if noise is None else 0.5 / noise**2) / temperature

    def log_likelihood(self, noise: float | None, temperature: float) -> float:
        """log p(D | theta), to the power 1 / T in its part that depends on theta."""
        value = -self.precision(noise, temperature) * self.total
        if noise is not None:
            value -= self.entries * math.log(noise * math.sqrt(2.0 * math.pi))
        return value


def observations_of(risk: Risk, params: Tree) -> Observations:
    """Those of a risk; raises where its loss is no likelihood that Laplace's method knows."""
    here = look_here(risk, lambda here: _observations_here(here, params))
    if risk.ranks is None:
        assert here is not None
        return here
    first = look_once(risk, lambda _: here)
    assert first is not None
    mine = here or Observations(first.kind, first.number, 0.0, 0.0)
    rows = risk.ranks.gather(mine.total, mine.entries)
    total, entries = (math.fsum(column) for column in zip(*rows, strict=True))
    return Observations(first.kind, first.number, total, entries)


def _observations_here(risk: Risk, params: Tree) -> Observations:
    """Those of the part of a risk in this process."""
    coefficient, batch = next(risk.batches())
    likelihood = one_likelihood(risk, params, batch)
    kind = _KINDS.get(type(likelihood))
    if kind is None:
        raise FunctionError(
            expected="a loss whose outputs have a predictive distribution: cross-entropy, "
            "BCEWithLogitsLoss, MSELoss",
            got=type(likelihood).__name__,
            remedy="Give one of these, of logits or of means; hesse.fisher_operator and "
            "hesse.sample_normal take other likelihoods.",
        )
    number = 1.0 / (coefficient * _weight(likelihood))
    entries = likelihood.z.numel() / count_examples(batch) * total_examples(risk.data)
    return Observations(kind, number, number * _data_part(risk, params), entries)


def one_likelihood(risk: Risk, params: Tree, batch: Any) -> Likelihood:
    """The only likelihood in the loss of a batch."""
    likelihoods = seen_at(risk, params, risk.loss_of(batch)).likelihoods
    if len(likelihoods) != 1:
        raise FunctionError(
            expected="one likelihood in the loss",
            got=f"{len(likelihoods)} of them",
            remedy="Give a loss that calls one loss function of torch.",
        )
    return likelihoods[0]


def _weight(likelihood: Likelihood) -> float:
    """omega, which all rows share but those that are ignored."""
    omega = likelihood.omega[likelihood.omega > 0].double()
    low, high = (float(omega.min()), float(omega.max())) if omega.numel() else (0.0, 0.0)
    if not 0.0 < high <= low * (1.0 + 1e-4):
        raise FunctionError(
            expected="a loss in which every observation counts alike, as in a likelihood",
            got=f"weights from {low:g} to {high:g}",
            remedy="Leave out class weights, pos_weight and weights of examples.",
        )
    return low


def _data_part(risk: Risk, params: Tree) -> float:
    """R without the weight decay, one batch at a time."""
    space = Space.of(params, what="params")
    parts = [
        s.coefficient * float(s.function(space.copy(params)).detach())
        for s in risk.summands()
        if not isinstance(s.function, Quadratic)
    ]
    total = math.fsum(parts)
    if not math.isfinite(total):
        raise FunctionError(
            expected="a finite loss at params", got=f"{total}", remedy="Check params and the data."
        )
    return total


def targets_of(risk: Risk, params: Tree, batch: Any) -> Tensor:
    """What the likelihood of a batch was told to have been observed."""
    calls = seen_at(risk, params, risk.loss_of(batch)).calls
    return torch.as_tensor(calls[0].arguments["target"]).detach()
