# SPDX-License-Identifier: Apache-2.0
"""`NewtonDirect`: steps from factors of the curvature, within a trust radius."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hesse.curvature.sparse_hessian import sparse_hessian_operator
from hesse.errors import ArgumentError, OperatorError
from hesse.operators.algebra import LinearOperator
from hesse.optimize.earlier_factors import EarlierFactors, FactorsState
from hesse.optimize.factory import Factory, shifted
from hesse.optimize.lowest_curvature import definite_inverse
from hesse.optimize.method import MinimizeMethod, Setting
from hesse.optimize.point import Point
from hesse.optimize.proposal import Candidate, LoopDescent, LoopSearch, Proposal
from hesse.optimize.trust_radius import TrustRadius

# How close to the radius a step to the boundary must end, relative to it.
_CLOSE = 0.1
# Shifts that are tried for one step, and solves for a direction of least curvature.
_SHIFTS, _SOLVES = 40, 3


@dataclass(frozen=True, repr=False)
class NewtonDirect(MinimizeMethod):
    r"""Newton steps from a factorisation of the curvature, within a trust radius.

    $$ (H + \lambda I)\, s = -g, \qquad \lambda \ge 0, \quad H + \lambda I \succ 0, \quad
       \lambda\, (\Delta - \lVert s \rVert) = 0 $$

    For a curvature that can be factorised, by factors that tell the signs of its eigenvalues. By
    default it is `hesse.sparse_hessian_operator`; it may be a dense or diagonal operator.
    Where H is positive definite and the Newton step is within the radius there is one factorisation
    a point. Else the secular equation |s(lambda)| = Delta takes about three more; in the hard case
    the step goes on along a direction of least curvature, found with the same factors.

    Of ten thousand variables or more, the factors serve at the next points too: they precondition
    conjugate gradients, until these have taken as many iterations as new factors would cost.

    Cost: one factorisation and a solve for a Newton step, or some iterations of the cost of a solve
        each; one value, and a gradient where the step is accepted. The entries of a sparse Hessian
        count in `nhev` as the products that they cost, `S.cost`; what CG does with them does not.
        Those at the first point tell what they cost: with a lower `max_products` they are the last.
        At the end one more factorisation, whose pivots show whether the point is a minimum.

    Raises:
        HesseError: the curvature has no exact inverse; a preconditioner was given.

    References: Moré & Sorensen 1983, doi:10.1137/0904038; Conn, Gould & Toint 2000, section 7.3.

    >>> import hesse, torch
    >>> f = lambda x: ((x[1:] - x[:-1] ** 2) ** 2).sum() + (x - 1).square().sum()
    >>> x = torch.zeros(50, dtype=torch.float64)
    >>> result = hesse.minimize(f, x, NewtonDirect())
    >>> result.success, bool((result.x - 1).abs().max() < 1e-6)
    (True, True)
    """

    name: ClassVar[str] = "newton-direct"

    @property
    def hessian(self) -> Factory:
        """A sparse matrix, which has factors."""
        return sparse_hessian_operator

    def compose(self, setting: Setting) -> tuple[LoopDescent, LoopSearch]:
        if setting.preconditioner is not None:
            raise ArgumentError(
                expected="no preconditioner with method='newton-direct', whose solves are exact",
                got=str(setting.preconditioner).partition("\n")[0],
                remedy="Leave it out, or take method='trust-krylov'.",
            )
        return FactorisedNewton(setting), TrustRadius(starts_long=True)


class FactorisedNewton(LoopDescent):
    """The minimum of the model within a radius, by factors of H + lambda I."""

    def __init__(self, setting: Setting) -> None:
        self.state = FactorsState()
        self._earlier, self._can_factorise = EarlierFactors(setting), False

    def propose(self, point: Point, scalar: float) -> Proposal:
        """A step from `point` within the radius `scalar`."""
        H = point.curvature
        if not self._can_factorise and shifted(H, 1.0) is None:
            raise OperatorError(
                expected="a curvature that can be factorised, with method='newton-direct'",
                got=str(H),
                remedy="Give curvature=hesse.sparse_hessian_operator, or take another method.",
            )
        self._can_factorise = True
        found = self._earlier.step(self.state, point, scalar, self.gradient_tolerance)
        if found is not None:
            return Proposal(found)
        search = _Search(point, H, scalar)
        found = search.solve()
        self._earlier.keep(self.state, point, search.definite)
        length = point.space.norm(found.step)
        return Proposal(found, on_boundary=length > (1.0 - 2.0 * _CLOSE) * scalar)

    def rejected(self) -> None:
        """The next step, from the same point, is shorter: it takes factors of that point."""
        self._earlier.drop(self.state)

    def moved(self) -> None:
        """The next point is no neighbour of the last one."""
        self._earlier.drop(self.state)


@dataclass
class _Search:
    """The search for lambda between two bounds: below `low` H + lambda I is not definite."""

    point: Point
    H: LinearOperator
    radius: float
    low: float = 0.0
    high: float = math.inf
    definite: LinearOperator | None = None
    """H^-1, where H is positive definite."""

    def solve(self) -> Candidate:
        """The step, and what the model predicts for it."""
        shift, best = 0.0, None
        for _ in range(_SHIFTS):
            inverse = self._inverse(shift)
            if inverse is None:
                self.low = max(self.low, shift)
                shift = self._between(shift)
                continue
            self.definite = inverse if shift == 0.0 else self.definite
            s = -inverse._matvec(self.point.gradient)
            size = self.point.space.norm(s)
            if (shift == 0.0 and size <= self.radius) or self._is_close(size):
                return self._candidate(s, shift)
            if size < self.radius:
                self.high = min(self.high, shift)
                longer = self._hard_case(inverse, s, size, shift)
                if longer is not None:
                    return longer
                best = self._candidate(s, shift)
            shift = self._newton(inverse, s, size, shift)
        if best is None:  # the boundary was not reached: the gradient is at the level of rounding
            return Candidate(self.point.space.zeros(), 0.0)
        return best

    def _inverse(self, shift: float) -> LinearOperator | None:
        """(H + shift I)^-1, if that is positive definite."""
        A = shifted(self.H, shift)
        return None if A is None else definite_inverse(A)

    def _is_close(self, size: float) -> bool:
        return abs(size - self.radius) <= _CLOSE * self.radius

    def _between(self, shift: float) -> float:
        """A larger shift, after one that was too small."""
        if self.high < math.inf:
            return max(math.sqrt(self.low * self.high), self.low + 0.1 * (self.high - self.low))
        return max(4.0 * shift, self.point.gradient_norm / self.radius)

    def _newton(self, inverse: LinearOperator, s: Tensor, size: float, shift: float) -> float:
        """The next shift by Newton's method on 1/|s| - 1/radius, between the bounds."""
        curvature = self.point.space.inner(s, inverse._matvec(s))
        following = shift + size * size / curvature * (size - self.radius) / self.radius
        if size > self.radius:
            self.low = max(self.low, shift)
        if self.low < following < self.high:
            return following
        return self._between(shift)

    def _hard_case(
        self, inverse: LinearOperator, s: Tensor, size: float, shift: float
    ) -> Candidate | None:
        """s + t z on the boundary, for z of least curvature, if that is nearly the minimum."""
        space = self.point.space
        z = space.gaussian(torch.Generator().manual_seed(0))
        for _ in range(_SOLVES):
            z = inverse._matvec(z / space.norm(z))
        z = z / space.norm(z)
        along = self._curvature(z) + shift
        sz = space.inner(s, z)
        room = self.radius**2 - size**2
        t = room / (abs(sz) + math.sqrt(sz * sz + room))
        t = math.copysign(t, sz) if sz != 0.0 else t
        worth = shift * self.radius**2 - space.inner(self.point.gradient, s)
        if t * t * along > _CLOSE * worth:
            return None
        return self._candidate(s + t * z, None)

    def _candidate(self, s: Tensor, shift: float | None) -> Candidate:
        """A step with g's + s'Hs/2; H s = -(g + shift s) for a solution."""
        space, g = self.point.space, self.point.gradient
        slope = space.inner(g, s)
        if shift is not None:
            return Candidate(s, 0.5 * slope - 0.5 * shift * space.inner(s, s))
        return Candidate(s, slope + 0.5 * self._curvature(s))

    def _curvature(self, s: Tensor) -> float:
        """s'Hs with the entries of H, which is no product."""
        with self.point.uncounted():
            return self.H._curvature(s)
