# SPDX-License-Identifier: Apache-2.0
"""The prior precision of the least negative log-likelihood of data that were held out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hesse.apps.uncertainty.calibration import as_rows, class_scores, classes, number_scores
from hesse.apps.uncertainty.links import probit
from hesse.apps.uncertainty.observations import Kind, targets_of
from hesse.apps.uncertainty.posterior import Posterior
from hesse.apps.uncertainty.precision import GAMMA_DRAWS
from hesse.apps.uncertainty.predictive import Normal, Predictive
from hesse.checkpoint import Checkpoint
from hesse.operators.diagonal import DiagonalOperator
from hesse.risk.risk import Risk
from hesse.vectors.space import Space, Tree

_GRID = 10.0 ** torch.linspace(-4.0, 6.0, 41, dtype=torch.float64)
_COARSE = 10.0 ** torch.linspace(-2.0, 4.0, 13, dtype=torch.float64)
"""Where every precision takes a block of systems."""


@dataclass(frozen=True)
class HeldOut:
    """Data that were not trained on: inputs and what was observed, batch by batch."""

    risk: Risk
    params: Tree
    kind: Kind
    class_dim: int

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        for _, batch in self.risk.batches():
            yield batch.inputs, targets_of(self.risk, self.params, batch)

    @cached_property
    def targets(self) -> Tensor:
        """All of them, (m,)."""
        return torch.cat([y.reshape(-1) for _, y in self])

    def logits(self, p_or_z: list[Tensor]) -> Tensor:
        """Rows of logits, (m, K)."""
        return torch.cat([as_rows(z, self.class_dim, self.kind) for z in p_or_z])

    def scores(self, predictions: list[Tensor | Normal]) -> tuple[float, ...]:
        """The scores of predictive distributions, one for each batch; the NLL comes first."""
        if self.kind == "gaussian":
            mean, variance = (torch.cat([p[k].reshape(-1) for p in predictions]) for k in (0, 1))
            return number_scores(mean, variance, self.targets.to(mean))
        y, counted = classes(self.targets, self.kind)
        p = torch.cat([self._probabilities(p) for p in predictions])
        return class_scores(p[counted], y[counted].to(p.device))

    def _probabilities(self, p: Any) -> Tensor:
        if self.kind == "bernoulli":
            flat = p.reshape(-1)
            return torch.stack([1.0 - flat, flat], 1)
        return as_rows(p, self.class_dim, self.kind)


@dataclass
class Tried:
    """The NLL of the first precisions of the grid, as a checkpoint holds them."""

    losses: list[float] = field(default_factory=list)
    seed: Tensor | None = None
    """Of the random numbers that all precisions share."""
    products: int = 0


def chosen_on(predictive: Predictive, data: HeldOut, file: Checkpoint) -> Posterior:
    """The posterior whose prior precision has the least NLL of the data, on a grid."""
    grid = _GRID if predictive.is_exact else _COARSE
    if predictive.is_exact:
        losses = _at_once(predictive, data, grid)
    else:
        losses = _one_by_one(predictive, data, grid, file)
    best = min(range(len(losses)), key=losses.__getitem__)
    return predictive.posterior.at(grid[best])


def _one_by_one(
    predictive: Predictive, data: HeldOut, grid: Tensor, file: Checkpoint
) -> list[float]:
    """The NLL for each prior precision, by variances from the same random numbers."""
    file = file.part("held-out", data=None if file.path is None else _scored(predictive, data))
    work, tried = predictive.posterior.work, Tried()
    if file.resume(tried):
        work.resume(tried.products, tried.seed)
    for delta in grid[len(tried.losses) :]:
        here = predictive.at(predictive.posterior.at(delta))
        predictions = [here.predict(x, "probit", GAMMA_DRAWS) for x, _ in data]
        tried.losses.append(data.scores(predictions)[0])
        tried.seed, tried.products = work.saved_seed, work.products
        file.save(tried)
    return tried.losses


def _scored(predictive: Predictive, data: HeldOut) -> DiagonalOperator:
    """By which a checkpoint recognises what is scored: outputs, targets, the fit of the model."""
    outputs = predictive.outputs
    f = [outputs.at(batch).reshape(-1) for x, _ in data for batch in outputs.batches(x)]
    fit = torch.tensor([predictive.posterior.observations.total])
    seen = torch.cat([part.cpu().double() for part in (*f, data.targets, fit)])
    return DiagonalOperator(Space.flat(len(seen), seen.dtype), seen)


def _at_once(predictive: Predictive, data: HeldOut, grid: Tensor) -> list[float]:
    """The NLL for each prior precision, from one Jacobian for all of them."""
    candidates = [predictive.posterior.at(delta) for delta in grid]
    predictions: list[list[Any]] = [[] for _ in candidates]
    for x, _ in data:
        for found, prediction in zip(predictions, _of_all(predictive, candidates, x), strict=True):
            found.append(prediction)
    return [data.scores(found)[0] for found in predictions]


def _of_all(predictive: Predictive, candidates: list[Posterior], x: Any) -> list[Any]:
    """The predictive distribution for x of each candidate."""
    outputs, kind = predictive.outputs, predictive.posterior.observations.kind
    if predictive.last_layer is not None:
        return [predictive.at(c).predict(x, "probit", None) for c in candidates]
    parts = [_variances(candidates, *outputs.rows(b)) for b in outputs.small_batches(x)]
    f = torch.cat([f for f, _ in parts])
    predictions: list[Any] = []
    for c, v in zip(candidates, torch.cat([v for _, v in parts], 1), strict=True):
        if kind == "gaussian":
            assert c.noise is not None
            predictions.append(Normal(f, v + c.noise**2))
        else:
            predictions.append(probit(f, v, kind, outputs.class_dim))
    return predictions


def _variances(candidates: list[Posterior], f: Tensor, J: Tensor) -> tuple[Tensor, Tensor]:
    """f (q, ...) and diag(J P^-1 J') for each P, (candidates, q, ...), from rows J (q, D, s)."""
    rows = J.reshape(-1, J.shape[-1])
    eigen = candidates[0].curvature.A._eigen()
    if eigen is not None:
        Q, w = eigen
        squares = Q._rmatmat(rows.T.contiguous()).square()
        weights = [1.0 / (c.scale * w + c.prior.values[0]) for c in candidates]
        variances = torch.stack(weights).to(squares.dtype) @ squares
    else:
        solved = [c.precision.solved(rows.T.contiguous()) for c in candidates]
        variances = torch.stack([(rows.T * X).sum(0) for X in solved])
    return f, variances.view(len(candidates), *f.shape)
