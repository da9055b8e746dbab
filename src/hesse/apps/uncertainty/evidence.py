# SPDX-License-Identifier: Apache-2.0
r"""Prior precisions, and the noise of a regression, of the largest evidence.

At it $\delta_g |\theta_g|^2 = \gamma_g$ for every group, and $s^2 (N_d - \gamma) = \sum (z - y)^2$,
with gamma_g the number of parameters of the group that the data determine. theta stays as it is.

References: MacKay 1992, doi:10.1162/neco.1992.4.3.415.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from hesse.apps.uncertainty.posterior import Posterior
from hesse.apps.uncertainty.precision import ExactPrecision
from hesse.boundary import warn
from hesse.errors import ArgumentError

_MOST = 500  # steps of the fixed point
_EXACT = 1e-12  # its relative tolerance where gamma is exact
_ESTIMATED = 1e-3  # and where it is the mean of draws, which are the same in every step
_FAR = 1e12  # a prior precision, relative to the curvature, that stands for infinity


def maximised(posterior: Posterior, *, prior: bool, noise: bool) -> Posterior:
    """The posterior with the prior precisions, and the noise, of the largest evidence."""
    if prior and not bool((posterior.squares > 0.0).all()):
        raise ArgumentError(
            expected="trained parameters for prior='evidence'",
            got="a group of parameters that are all zero",
            remedy="Train the model first, or give a prior precision.",
        )
    tolerance = _EXACT if isinstance(posterior.precision, ExactPrecision) else _ESTIMATED
    for _ in range(_MOST):
        before = posterior
        if prior:
            posterior = _best_prior(posterior)
        if noise:
            posterior = posterior.at(posterior.prior.values, _best_noise(posterior))
        if _change(before, posterior) <= tolerance:
            return posterior
    warn("The prior precisions of the largest evidence were not found to all digits.")
    return posterior


def _best_prior(posterior: Posterior) -> Posterior:
    """The best precision for this noise where all eigenvalues are known; else one step."""
    A = posterior.curvature.A
    w = A._eigenvalues() if len(posterior.prior.names) == 1 and A.is_structured else None
    if w is None:
        return posterior.at(posterior.effective / posterior.squares)
    return posterior.at(_root(posterior.scale * w, float(posterior.squares[0])))


def _root(w: Tensor, square: float) -> float:
    """delta with sum w / (w + delta) = delta |theta|^2, by bisection of its logarithm."""
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
    """s^2 = sum of squared errors / (number of observations - gamma)."""
    observations = posterior.observations
    free = observations.entries - float(posterior.effective.sum())
    if not free > 0.0 or not observations.total > 0.0:
        raise ArgumentError(
            expected="errors of the fit from which the noise can be learnt",
            got=f"a sum of squares of {observations.total:g}, and {free:.3g} degrees of freedom",
            remedy="Give noise=, a standard deviation.",
        )
    return math.sqrt(observations.total / posterior.temperature / free)


def _change(before: Posterior, after: Posterior) -> float:
    """The largest relative change."""
    change = float((after.prior.values / before.prior.values).log().abs().max())
    if before.noise is None or after.noise is None:
        return change
    return max(change, abs(math.log(after.noise / before.noise)))
