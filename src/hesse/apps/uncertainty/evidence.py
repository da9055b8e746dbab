# SPDX-License-Identifier: Apache-2.0
r"""Prior precisions, and the noise of a regression, of the largest evidence.

At it $\delta_g |\theta_g|^2 = \gamma_g$ for every group, and $s^2 (N_d - \gamma) = \sum (z - y)^2$,
with gamma_g the number of parameters of the group that the data determine. theta stays as it is.

References: MacKay 1992, doi:10.1162/neco.1992.4.3.415.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.apps.uncertainty.posterior import Posterior
from hesse.apps.uncertainty.precision import ExactPrecision
from hesse.boundary import warn
from hesse.checkpoint import Checkpoint
from hesse.errors import ArgumentError

_MOST = 500  # steps of the fixed point
_EXACT = 1e-12  # its relative tolerance where gamma is exact, in float64
_ESTIMATED = 1e-3  # and where it is the mean of draws, which are the same in every step
_LOG_S = 20.0  # log s above that of the residuals, at most
_FAR = 1e12  # a prior precision, relative to the curvature, that stands for infinity


@dataclass
class Search:
    """Where the fixed point has come, as a checkpoint holds it."""

    prior: Tensor
    noise: float | None
    seed: Tensor | None = None
    """Of the random numbers that all steps share."""
    products: int = 0

    @staticmethod
    def of(posterior: Posterior) -> Search:
        """That of a posterior."""
        work = posterior.work
        return Search(posterior.prior.values, posterior.noise, work.saved_seed, work.products)

    def onto(self, posterior: Posterior) -> Posterior:
        """The posterior of this step."""
        posterior.work.resume(self.products, self.seed)
        return posterior.at(self.prior, self.noise)


def maximised(posterior: Posterior, *, prior: bool, noise: bool, file: Checkpoint) -> Posterior:
    """The posterior with the prior precisions, and the noise, of the largest evidence."""
    if prior and not bool((posterior.squares > 0.0).all()):
        raise ArgumentError(
            expected="trained parameters for prior='evidence'",
            got="a group of parameters that are all zero",
            remedy="Train the model first, or give a prior precision.",
        )
    tolerance, search = _tolerance(posterior), Search.of(posterior)
    if file.resume(search):
        posterior = search.onto(posterior)
    for _ in range(_MOST):
        before = posterior
        if prior:
            posterior = _best_prior(posterior)
        if noise:
            posterior = posterior.at(posterior.prior.values, _best_noise(posterior))
        file.save(Search.of(posterior))
        if _change(before, posterior) <= tolerance:
            return posterior
    warn("The prior precisions of the largest evidence were not found to all digits.")
    return posterior


def _tolerance(posterior: Posterior) -> float:
    if not isinstance(posterior.precision, ExactPrecision):
        return _ESTIMATED
    return max(_EXACT, 100 * torch.finfo(posterior.chosen.whole.dtype).eps)


def _best_prior(posterior: Posterior) -> Posterior:
    """The best precision for this noise where all eigenvalues are known; else one step."""
    w = posterior.spectrum
    if w is None:
        return posterior.at(posterior.effective / posterior.squares)
    return posterior.at(_root(posterior.scale * w, float(posterior.squares[0])))


def _root(w: Tensor, square: float) -> float:
    """delta with sum w / (w + delta) = delta |theta|^2."""
    top = float(w.max())
    if not top > 0.0:
        raise ArgumentError(
            expected="data that determine a parameter, for prior='evidence'",
            got="a curvature of zero",
            remedy="Check the loss, or give a prior precision.",
        )

    def excess(log: float) -> float:
        delta = math.exp(log)
        return float((w / (w + delta)).sum()) - delta * square

    return math.exp(bisected(excess, math.log(top / _FAR), math.log(len(w) / square) + 1.0))


def bisected(f: Callable[[float], float], low: float, high: float) -> float:
    """The zero of a falling function, to the last digit.

    >>> round(bisected(lambda x: 2.0 - x * x, 0.0, 2.0), 6)
    1.414214
    """
    while low < (middle := 0.5 * (low + high)) < high:
        low, high = (middle, high) if f(middle) > 0.0 else (low, middle)
    return middle


def _best_noise(posterior: Posterior) -> float:
    """The best s for this prior where all eigenvalues are known; else one step towards it."""
    observations, w = posterior.observations, posterior.spectrum
    total = observations.total / posterior.temperature
    if not total > 0.0:
        raise _no_errors("a sum of squared errors of 0")
    if w is None:
        free = observations.entries - float(posterior.effective.sum())
        if not free > 0.0:
            raise _no_errors(f"{free:.3g} degrees of freedom")
        return math.sqrt(total / free)
    scale, delta = posterior.at(1.0, 1.0).scale, float(posterior.prior.values[0])

    def excess(log: float) -> float:
        data = scale * w / math.exp(2.0 * log)
        gamma = float((data / (data + delta)).sum())
        return total / math.exp(2.0 * log) - observations.entries + gamma

    least = 0.5 * math.log(total / observations.entries)
    return math.exp(bisected(excess, least, least + _LOG_S))


def _no_errors(got: str) -> ArgumentError:
    return ArgumentError(
        expected="errors of the fit from which the noise can be learnt",
        got=got,
        remedy="Give noise=, a standard deviation.",
    )


def _change(before: Posterior, after: Posterior) -> float:
    """The largest relative change."""
    change = float((after.prior.values / before.prior.values).log().abs().max())
    if before.noise is None or after.noise is None:
        return change
    return max(change, abs(math.log(after.noise / before.noise)))
