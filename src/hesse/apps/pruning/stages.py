# SPDX-License-Identifier: Apache-2.0
"""The steps of a pruning: a model of the risk, masks for several dampings, and the best of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hesse.apps.pruning.curvature import Curvature, curvature_at
from hesse.apps.pruning.divergence import Divergence
from hesse.apps.pruning.elimination import optimal_brain_surgery
from hesse.apps.pruning.held_out import Calibration
from hesse.apps.pruning.layerwise import layerwise_surgery
from hesse.apps.pruning.masks import Exchange, magnitude, optimal_brain_damage
from hesse.apps.pruning.model import QuadraticModel
from hesse.apps.pruning.patterns import Pattern
from hesse.apps.pruning.repair import Repair
from hesse.curvature.hessian import hessian_operator
from hesse.errors import NonFiniteError, OperatorError
from hesse.estimators.diagonal import diagonal
from hesse.risk.risk import Risk
from hesse.vectors.space import Space, Tree

_GRID = (0.1, 1.0, 10.0, 100.0)  # times the mean diagonal: the first dampings that are tried
_NEXT = (0.25, 1.0, 4.0)  # times the last damping: those of further steps
_LARGER = (1.0, 4.0, 16.0, 64.0)  # times the damping of a step that is taken again
_RAISE = 4.0  # of the damping after a step that found nothing better
_PROBES = 100  # for a diagonal that has to be sampled


@dataclass
class Progress:
    """Where a pruning is, as a callback sees it."""

    w: Tensor
    """The weights, a flat vector."""
    keep: Tensor
    """The mask of what is kept, a flat vector."""
    step: int = 0
    """Steps done, those of a refit included."""
    products: int = 0
    damping: float = math.nan
    """The last one, raised where a refit found nothing better; NaN before the first search."""
    loss: float = math.nan
    """What the judge said last; NaN if it was not asked."""
    failures: int = 0
    """Steps of a refit that found nothing better."""
    increase: float = 0.0
    """The increases that the models predicted, added."""
    seed: int = 0
    draws: int = 0
    """Models made, each of which draws examples of its own."""
    history: list[list[float]] = field(default_factory=list)
    """For each step: sparsity, damping, predicted increase, loss of the judge."""
    found: list[list[float]] = field(default_factory=list)
    """The history of a search that has ended; its steps are taken again with all examples."""

    def take_found(self) -> float:
        """The damping that the search found for this step, whose loss is then that of the judge."""
        _, damping, _, self.loss = self.found[self.step]
        return damping

    def restart(self, w: Tensor) -> None:
        """Back to the first weights, with the dampings that were found."""
        self.found = self.history
        self.w, self.keep = w, torch.ones_like(self.keep)
        self.step, self.failures, self.increase, self.history = 0, 0, 0.0, []


@dataclass(frozen=True)
class Proposal:
    """Weights with a mask, by one damping."""

    damping: float
    keep: Tensor
    w: Tensor


@dataclass(frozen=True)
class Stages:
    """What all steps share."""

    calibration: Calibration
    space: Space
    pattern: Pattern
    curvature: Curvature
    score: str
    repair: Repair | None
    damping: float | None
    divergence: Divergence

    def prune(self, at: Progress, sparsity: float) -> None:
        """One step to a sparsity."""
        model = self._model(at)
        if at.found:
            best = self._pruned(model, sparsity, at.take_found())
        else:
            best = self._best(at, model, self._proposals(at, model, sparsity))
        self._advance(at, model, best)

    @property
    def repeats(self) -> bool:
        """Whether the steps of a search are taken again, with the examples that were held out.

        Not where the risk is lowered: then these examples judge to the end.
        """
        options = self._options
        return self.calibration.splits and options.target != "risk" and options.examples is None

    def refit(self, at: Progress) -> None:
        """One step with the mask as it is; none, but a failure, where nothing is better."""
        model = self._model(at)
        if at.found:
            self._advance(at, model, self._refitted_again(at, model))
            return
        dampings = self._dampings(at, model, adapts=True)
        before = self._loss(at.w)
        weights = model.all_repaired(at.keep, dampings)
        losses = [self._loss(w) for w in weights]
        lowest = min(losses)
        if not lowest < before:
            at.products += model.products
            at.damping = _RAISE * (at.damping or max(dampings))
            at.failures += 1
            return
        at.loss, best = lowest if self.is_judged else math.nan, losses.index(lowest)
        self._advance(at, model, Proposal(dampings[best], at.keep, weights[best]))

    def _refitted_again(self, at: Progress, model: QuadraticModel) -> Proposal:
        """By the damping that was found or the next larger one that brings the outputs nearer.

        Without held-out examples nothing else keeps a step from going too far.
        """
        first = at.take_found()
        dampings = [factor * first for factor in _LARGER]
        before = self._divergence(at.w)
        for damping, w in zip(dampings, model.all_repaired(at.keep, dampings), strict=True):
            if self._divergence(w) < before:
                return Proposal(damping, at.keep, w)
        return Proposal(first, at.keep, at.w)

    # -- The model ---------------------------------------------------------------------------------

    @property
    def _options(self) -> Repair:
        return self.repair or Repair(target=None)

    def _sample(self, at: Progress) -> Risk:
        if at.found:
            return self.calibration.risk
        return self.calibration.sample(self._options.examples, at.seed + at.draws)

    def _model(self, at: Progress) -> QuadraticModel:
        risk, params = self._sample(at), self.space.unflatten(at.w)
        A = curvature_at(self.curvature, risk, params, self.space)
        probes = torch.Generator().manual_seed(at.seed + at.draws)
        known = diagonal(A, max_products=_PROBES, generator=probes)
        at.draws += 1
        options = self._options
        return QuadraticModel(
            *(A, at.w, self._gradient(at, risk, params), known.value.clamp(min=0.0)),
            *(options.rtol, options.max_iterations),
            products=known.products,
        )

    def _gradient(self, at: Progress, risk: Risk, params: Tree) -> Tensor:
        target = self._options.target
        if target == "risk":
            return hessian_operator(risk, params).flat_gradient
        if target is None or at.step == 0 or self.curvature == "layers":
            return torch.zeros_like(at.w)
        return self.divergence.gradient(risk, params)

    # -- Masks and dampings ------------------------------------------------------------------------

    def _dampings(
        self, at: Progress, model: QuadraticModel, *, adapts: bool = False
    ) -> list[float]:
        """Those to try: the one that was given, unless it adapts, or some of a search."""
        if self.damping is not None and not adapts:
            return [self.damping]
        if self.score == "magnitude" and self.repair is None:
            return [0.0]
        if at.damping > 0.0:
            return [factor * at.damping for factor in _NEXT]
        mean = float(model.diagonal[self.pattern.prunable].double().mean())
        return [factor * (mean or 1.0) for factor in _GRID]

    def _proposals(
        self, at: Progress, model: QuadraticModel, sparsity: float
    ) -> Iterator[Proposal]:
        """Weights for each damping. One for which the matrix is not definite is left out."""
        dampings, error = self._dampings(at, model), None
        if self.score == "magnitude" and self.repair is not None:  # one mask for all dampings
            keep = magnitude(model, self.pattern, sparsity)
            for damping, w in zip(dampings, model.all_repaired(keep, dampings), strict=True):
                yield Proposal(damping, keep, w)
            return
        found = 0
        for damping in dampings:
            try:
                yield self._pruned(model, sparsity, damping)
                found += 1
            except OperatorError as indefinite:
                error = indefinite
        if error is not None and not found:
            raise error

    def _pruned(self, model: QuadraticModel, sparsity: float, damping: float) -> Proposal:
        """The mask and the weights for one damping."""
        keep = self._mask(model, sparsity, damping)
        if self.repair is None:
            return Proposal(damping, keep, model.removed(keep))
        if self.score == "exchange":
            exchange = Exchange(model, self.pattern, sparsity, self.repair.exchanges)
            return Proposal(damping, *exchange.from_mask(keep, damping))
        return Proposal(damping, keep, model.repaired(keep, damping))

    def _mask(self, model: QuadraticModel, sparsity: float, damping: float) -> Tensor:
        """The mask by the score alone; that with which exchanges begin."""
        if self.score == "magnitude":
            return magnitude(model, self.pattern, sparsity)
        if self.score != "obs":
            return optimal_brain_damage(model, self.pattern, sparsity, damping)
        surgery = layerwise_surgery if self.curvature == "layers" else optimal_brain_surgery
        return surgery(model, self.pattern, sparsity, damping)

    def _best(self, at: Progress, model: QuadraticModel, proposals: Iterator[Proposal]) -> Proposal:
        """The proposal of the least loss; the only one is not judged."""
        several = list(proposals)
        if len(several) == 1 and not self.is_judged:
            return several[0]
        losses = [self._loss(proposal.w) for proposal in several]
        at.loss = min(losses)
        if not at.loss < math.inf:
            raise NonFiniteError(
                expected="a finite loss of the pruned network",
                got="NaN or Inf, for every damping",
                remedy="Give a larger damping, more steps, or a lower sparsity.",
            )
        return several[losses.index(at.loss)]

    @property
    def is_judged(self) -> bool:
        """Whether there are data that only judge."""
        return self.calibration.judge is not self.calibration.risk

    def _loss(self, w: Tensor) -> float:
        loss = self.calibration.loss(self.space.unflatten(w))
        return loss if math.isfinite(loss) else math.inf

    def _divergence(self, w: Tensor) -> float:
        """On all examples; NaN is nothing that is lower."""
        return self.divergence.value(self.calibration.risk, self.space.unflatten(w))

    def _advance(self, at: Progress, model: QuadraticModel, best: Proposal) -> None:
        increase = model.increase(best.w)[0]
        at.w, at.keep, at.damping = best.w, best.keep, best.damping
        at.step += 1
        at.products += model.products
        at.increase += increase
        share = 1.0 - float(best.keep[self.pattern.prunable].double().mean())
        at.history.append([share, best.damping, increase, at.loss])
