# SPDX-License-Identifier: Apache-2.0
"""`profile`: likelihood intervals of a parameter."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hesse.apps.statistics.information import dense_information, entry_name
from hesse.apps.statistics.likelihood import Likelihood, likelihood_at
from hesse.apps.statistics.standard_errors import normal_quantile
from hesse.boundary import public
from hesse.errors import ArgumentError, OperatorError
from hesse.optimize.minimize import minimize
from hesse.result import Result
from hesse.risk.risk import Risk
from hesse.vectors.space import Space, Tree

_MAX_STEPS = 30
_FARTHEST = 100.0  # standard errors
_RTOL = 1e-8  # of the signed root
_RELATIVE_GRADIENT = 1e-9


@dataclass(frozen=True, repr=False)
class ProfileInterval(Result):
    """The likelihood interval of a parameter."""

    name: str
    """Which entry."""
    estimate: float
    """Where the negative log-likelihood is least."""
    low: float
    """The lower end; -inf if the likelihood does not fall far enough that way."""
    high: float
    """The upper end, likewise."""
    level: float
    """How often such intervals hold the truth, for many observations."""
    wald: tuple[float, float]
    """The interval of the quadratic, estimate +- z standard errors, beside it."""
    points: list[tuple[float, float]] = field(default_factory=list)
    """(value, 2 (profile - minimum)), the points that were computed, ascending."""


@public("hesse.apps.profile(f, params, {name})")
def profile(
    f: Callable[[Any], Tensor] | Risk,
    params: Tree | None = None,
    name: str | int | tuple[str, int] = 0,
    *,
    level: float = 0.95,
) -> ProfileInterval:
    r"""The interval of a parameter within which the profile likelihood falls by less than a limit.

    $$ \{ t : 2\,(\min_{\theta_j = t} l(\theta) - \min l) \le \chi^2_{1, \text{level}} \} $$

    l is the negative log-likelihood in sum form. The interval does not depend on how the parameter
    is written (an interval of log s is the logarithm of that of s), and need not be symmetric; the
    curvature of the profile at the estimate is 1 / [H^-1]_jj, that of Wald's interval.

    Args:
        f, params: as in `standard_errors`.
        name: an entry of the flat vector, or (name of a leaf, entry in it); the name alone of a
            leaf that is one number.
        level: of confidence.

    Returns:
        ProfileInterval(name, estimate, low, high, level, wald, points), the same in all processes
        that share the data.

    Cost: the minimisations of a root search at either end, some five each, from a start along the
        profile of the quadratic; and k products for k parameters.

    Raises:
        HesseError: no such entry; H is indefinite, so that params is no minimum; a minimisation
            failed. Warns where params is far from the minimum, from which all is measured.

    References: Venzon & Moolgavkar 1988, doi:10.2307/2347496.

    >>> y = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    >>> interval = profile(lambda log_mean: log_mean.exp() - y * log_mean, y.mean().log())
    >>> round(interval.low, 4), round(interval.high, 4)     # of 12 events in 4 counts
    (0.474, 1.6157)
    """
    quantile = normal_quantile(level)
    likelihood = likelihood_at(f, params)
    space = likelihood.space
    j = _entry(space, name)
    H = dense_information(likelihood, likelihood.hessian)
    unit = torch.zeros(space.n, 1, dtype=space.dtype, device=space.device)
    unit[j] = 1.0
    column, determined = H.solved(unit)
    if not bool(determined[0]):
        raise OperatorError(
            expected=f"{entry_name(space, j)} to be determined by the data",
            got="an information matrix that is singular along it",
            remedy="Fix another parameter, or drop a variable that the others determine.",
        )
    H.distance(likelihood.gradient)
    error = float(column[j, 0]) ** 0.5
    curve = _Profile(likelihood, j, column[:, 0] / column[j, 0])
    middle = float(curve.centre[j])
    ends = [curve.end(sign, quantile, error) for sign in (-1.0, 1.0)]
    return ProfileInterval(
        name=entry_name(space, j),
        estimate=middle,
        low=middle - ends[0],
        high=middle + ends[1],
        level=level,
        wald=(middle - quantile * error, middle + quantile * error),
        points=sorted((middle + t, d) for t, d in [*curve.points, (0.0, 0.0)]),
    )


class _Profile:
    """t -> 2 (min over the others at theta_j = centre_j + t, minus the minimum)."""

    def __init__(self, likelihood: Likelihood, j: int, tangent: Tensor) -> None:
        self.likelihood, self.j, self.tangent = likelihood, j, tangent
        self.space = likelihood.space
        self.centre = self.space.flatten(likelihood.params).detach().clone()
        self.others = torch.arange(self.space.n, device=self.space.device) != j
        self.least = float(self.likelihood.total(self.centre))
        self.points: list[tuple[float, float]] = []

    def end(self, sign: float, quantile: float, error: float) -> float:
        """The distance t at which the signed root of the profile is the quantile, or inf.

        The root is t / error for a quadratic, so nearly linear: a secant from the last two points.
        """
        last, at_last = 0.0, 0.0
        t, low, high = quantile * error, 0.0, math.inf
        start = self.centre
        for _ in range(_MAX_STEPS):
            value, start = self._at(sign * t, start)
            root = math.sqrt(max(value, 0.0))
            if abs(root - quantile) <= _RTOL * quantile:
                return t
            low, high = (t, high) if root < quantile else (low, t)
            slope = (root - at_last) / (t - last)
            step = (quantile - root) / slope if slope > 0.0 else math.inf
            last, at_last = t, root
            t = min(t + step, 3.0 * t)
            if not low < t < high:
                t = (low + high) / 2
            if t > _FARTHEST * error and math.isinf(high):
                return math.inf
        raise OperatorError(
            expected="an end of the interval within 30 minimisations",
            got=f"2 (profile - minimum) = {at_last**2:.6g} at a distance of {last:.6g}",
            remedy="Use float64, or minimise f further before.",
        )

    def _at(self, t: float, start: Tensor) -> tuple[float, Tensor]:
        """2 (profile - minimum) at a distance, and the point there."""
        moved = self.centre + t * self.tangent
        moved[self.j] = self.centre[self.j] + t
        if self.space.n > 1:
            moved = self._minimised(moved)
        value = 2.0 * (float(self.likelihood.total(moved)) - self.least)
        self.points.append((t, value))
        return value, moved

    def _minimised(self, theta: Tensor) -> Tensor:
        """The minimum over the other entries."""

        def restricted(rest: Tensor) -> Tensor:
            return self.likelihood.total(theta.masked_scatter(self.others, rest))

        result = minimize(restricted, theta[self.others], "trust-cg", rtol=_RELATIVE_GRADIENT)
        # Where rounding ends a search its value, quadratic in the distance, is exact.
        if not result.success and result.status.name != "STAGNATED":
            raise OperatorError(
                expected="a minimum over the other parameters",
                got=f"{result.status.name}. {result.message}",
                remedy="Minimise f further before, or use standard_errors.",
            )
        return theta.masked_scatter(self.others, result.x)


def _entry(space: Space, name: Any) -> int:
    """The place of a named entry in the flat vector."""
    if isinstance(name, int) and not isinstance(name, bool) and -space.n <= name < space.n:
        return name % space.n
    leaf, i = name if isinstance(name, tuple) and len(name) == 2 else (name, None)
    starts = dict(
        zip(space.names, torch.tensor([0, *space.sizes]).cumsum(0).tolist(), strict=False)
    )
    sizes = dict(zip(space.names, space.sizes, strict=True))
    if isinstance(leaf, str) and leaf in starts:
        if i is None and sizes[leaf] == 1:
            return starts[leaf]
        if isinstance(i, int) and 0 <= i < sizes[leaf]:
            return starts[leaf] + i
    raise ArgumentError(
        expected=f"an entry: a place below {space.n}, or (name, place) with a name such as "
        f"{space.names[:4]}",
        got=repr(name),
        remedy="See hesse.Space.of(params) for names and shapes.",
    )
