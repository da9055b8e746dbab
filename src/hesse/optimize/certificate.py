# SPDX-License-Identifier: Apache-2.0
"""Is a point with a small gradient a minimum? The curvature there tells, and values around it.

The smallest Ritz value of a Lanczos process from a random vector is an upper bound on the smallest
eigenvalue of the Hessian; after n steps it is that eigenvalue. Factors of the Hessian, where it has
some, tell the signs of all eigenvalues. Where the smallest is negative, or zero to rounding, f is
evaluated along its vector. A lower value there shows that the point is a maximum, a saddle point or
a degenerate one, and the minimisation goes on from it.

References: Kuczynski & Wozniakowski 1992, doi:10.1137/0613066 (how many steps find a negative
eigenvalue); Royer, O'Neill & Wright 2020, doi:10.1007/s10107-019-01362-7 (the test in Newton-CG).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.errors import Status
from hesse.krylov.cg import CG
from hesse.krylov.system import System
from hesse.operators.algebra import LinearOperator
from hesse.optimize.criterion import Criterion
from hesse.optimize.lowest_curvature import Ritz, by_factors, by_products, definite_inverse
from hesse.optimize.point import Objective, Point
from hesse.progress import Run
from hesse.ranks import is_outside_domain

# A certificate takes at least so many products, or n; and at most this fraction of those so far.
_LEAST, _FRACTION = 10, 0.1
# The entries that its basis may take, unless it has no more than _LEAST rows.
_ENTRIES = 1 << 27
# Trial lengths along a direction, relative to max(1, |x|): where curvature is negative each is a
# quarter of the last; where it is zero these two, and where it is small this one.
_LONGEST, _NUM_LENGTHS, _FLAT_LENGTHS, _SOFT_LENGTH = 0.1, 12, (0.1, 1e-3), 1e-2
# Curvature is small if along _LONGEST it changes f by less than this part of what f has changed.
_SOFT = 1e-3
# The model's decrease is known well enough when a solve has reduced its residual to this.
_DECREMENT_RTOL = 0.1


@dataclass(frozen=True)
class Verdict:
    """What was found; a `lower` point is where to go on."""

    status: Status
    min_curvature: float = math.nan
    lower: Point | None = None


class Certificate:
    """Tests points with a small gradient.

    Args:
        objective: the function.
        criterion: what was asked for.
        hessian: point -> its Hessian, whose products are counted.
        limits: of the minimisation.
    """

    def __init__(
        self,
        objective: Objective,
        criterion: Criterion,
        hessian: Callable[[Point], LinearOperator],
        limits: Run,
    ) -> None:
        self.objective, self.criterion = objective, criterion
        self.hessian, self.limits = hessian, limits

    def judge(self, point: Point) -> Verdict:
        """CONVERGED, or UNFINISHED where the minimisation must go on."""
        if self._budget(point) < 1:
            return Verdict(Status.MAX_PRODUCTS)
        ritz = self._smallest_ritz(point)
        smallest = math.nan if ritz is None else ritz.smallest
        if ritz is not None and not ritz.is_positive:
            lower = self._lower(point, ritz)
            if lower is not None:
                return Verdict(Status.UNFINISHED, smallest, lower)
            if ritz.is_clearly_negative and self._matters(point, ritz):
                return Verdict(Status.SADDLE_POINT, smallest)
        if point.gradient_norm > self.criterion.atol and not self._is_at_bottom(point, ritz):
            return Verdict(Status.UNFINISHED, smallest)
        if ritz is not None and ritz.is_positive and self._is_soft(point, ritz):
            lower = self._lower(point, ritz)
            if lower is not None:
                return Verdict(Status.UNFINISHED, smallest, lower)
        return Verdict(Status.CONVERGED, smallest)

    def is_zero_to_rounding(self, point: Point, *, by_value: bool = True) -> bool:
        """Whether the gradient is zero up to the rounding of x or, `by_value`, of f.

        Rounding x changes the gradient by H (eps x). And where the model predicts a decrease below
        the rounding error of f, no value can show progress.
        """
        if point.gradient_norm == 0.0:
            return True
        if self._budget(point) < 1:
            return False
        rounding = 10 * torch.finfo(point.x.dtype).eps * point.x * _signs(point)
        change = _attempt(lambda: point.space.norm(point.curvature._matvec(rounding)))
        if change is not None and point.gradient_norm <= change:
            return True
        return by_value and self._predicted_decrease(point) <= point.rounding_error

    # -- Curvature ---------------------------------------------------------------------------------

    def _budget(self, point: Point) -> int:
        """How many products may be taken now, after the entries of the curvature."""
        taken = self.objective.counts.nhev
        left = self.limits.left(taken) - point.entries_to_come
        wanted = max(_LEAST, int(_FRACTION * taken))
        fits = max(_LEAST, _ENTRIES // max(self.objective.space.max_size, 1))
        return int(min(wanted, fits, self.objective.space.n, left))

    def _smallest_ritz(self, point: Point) -> Ritz | None:
        """The smallest Ritz pair; None where products are not finite."""
        steps = min(self._budget(point), point.num_free)
        if steps == 0:  # every variable is held at a bound
            return None
        return _attempt(lambda: self._lanczos(point, point.reduced(self.hessian(point)), steps))

    def _lanczos(self, point: Point, hessian: LinearOperator, steps: int) -> Ritz:
        # Another start each time: the point may lie along the vector that the last one found.
        generator = torch.Generator().manual_seed(self.objective.counts.nhev)
        start = hessian.domain.gaussian(generator)
        start = start if point.free is None else start * point.free
        rest = self.limits.rest(0)
        found = by_products(hessian, start, steps, generator, lambda: rest.goes_on(_Products(0)))
        return found if steps == point.num_free else by_factors(hessian, found, start, generator)

    def _is_at_bottom(self, point: Point, ritz: Ritz | None) -> bool:
        """Whether the decrease that the quadratic model predicts is negligible."""
        g, negligible = point.gradient_norm, self.criterion.negligible(point)
        if ritz is not None and ritz.is_positive and g**2 <= 2 * ritz.smallest * negligible:
            return True
        if self._predicted_decrease(point) <= negligible:
            return True
        return self.is_zero_to_rounding(point, by_value=False)

    def _predicted_decrease(self, point: Point) -> float:
        """g'(H^-1)g / 2, or infinite where the model has no minimum along g."""
        budget = self._budget(point)
        if point.gradient_norm == 0.0 or budget < 1:
            return 0.0 if point.gradient_norm == 0.0 else math.inf
        H, g = point.reduced(point.curvature), point.projected_gradient
        inverse = definite_inverse(H) if H.is_structured else None
        if inverse is not None:
            return 0.5 * point.space.inner(g, inverse._matvec(g))
        taken = self.objective.counts.nhev
        system = System(
            H,
            -g,
            rtol=_DECREMENT_RTOL,
            max_iterations=budget,
            run=self.limits.rest(taken),
        )
        solution = _attempt(lambda: CG(verify=False).solve_system(system))
        if solution is not None and solution.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        if solution is None or solution.iterations == 0:
            return math.inf
        return -solution.model_value

    def _matters(self, point: Point, ritz: Ritz) -> bool:
        """Whether curvature changes f beyond doubt along the longest trial step."""
        length = _LONGEST * max(1.0, point.space.norm(point.x))
        return 0.5 * abs(ritz.smallest) * length**2 > 100 * self._rounding(point)

    def _rounding(self, point: Point) -> float:
        """The rounding error of f here, and of what it has fallen by."""
        eps = torch.finfo(point.x.dtype).eps
        return max(point.rounding_error, 10 * eps * (self.criterion.start_value - point.value))

    def _is_soft(self, point: Point, ritz: Ritz) -> bool:
        """Whether the curvature has fallen so far that x may be a point of inflection."""
        length = _LONGEST * max(1.0, point.space.norm(point.x))
        change = max(abs(point.value), self.criterion.start_value - point.value)
        return 0.5 * ritz.smallest * length**2 < _SOFT * change

    # -- Values around a point ---------------------------------------------------------------------

    def _lower(self, point: Point, ritz: Ritz) -> Point | None:
        """The first point along the Ritz vector, either way, whose value is lower."""
        decrease = self._rounding(point)
        if not ritz.is_clearly_negative or self.criterion.is_loose:
            decrease = max(decrease, self.criterion.negligible(point))
        scale = max(1.0, point.space.norm(point.x))
        lengths = [_LONGEST * 0.25**k for k in range(_NUM_LENGTHS)]
        downhill = -1.0 if point.space.inner(point.gradient, ritz.direction) > 0.0 else 1.0
        if ritz.is_positive:
            lengths = [_SOFT_LENGTH]
        elif ritz.is_flat:
            lengths = list(_FLAT_LENGTHS)
        for length in lengths:
            for sign in (downhill, -downhill):
                trial = self.objective.point(point.x + sign * length * scale * ritz.direction)
                if trial.value < point.value - decrease and trial.is_usable:
                    return trial
        return None


@dataclass
class _Products:
    products: int


def _signs(point: Point) -> Tensor:
    return point.space.rademacher(torch.Generator().manual_seed(0))


def _attempt(compute: Callable):
    """The result; None where a product is not finite or not defined."""
    try:
        return compute()
    except Exception as error:
        if not is_outside_domain(error):
            raise
        return None
