# SPDX-License-Identifier: Apache-2.0
"""A point of a minimisation: value, gradient and curvature, computed once and counted.

A trial point at which f cannot be evaluated (a matrix that is not positive definite, an argument
out of the support of a distribution, NaN, overflow) has an infinite value: a search rejects it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from hesse.curvature.operator import CurvatureOperator
from hesse.errors import NonFiniteError
from hesse.krylov.extreme import scale_to_one
from hesse.operators.algebra import LinearOperator
from hesse.optimize.box import Box, Masked
from hesse.ranks import is_outside_domain
from hesse.vectors.space import Space, Tree

T = TypeVar("T")

LONGEST = 1e8
"""Of a step, relative to max(1, |x|): a line search of 40 halvings then reaches 1e-4."""


def unit_for(gradient_norm: float) -> float:
    """What a model is multiplied by where squares of the gradient might under- or overflow.

    >>> unit_for(2.0), unit_for(1e200)
    (1.0, 1e-200)
    """
    return 1.0 if 1e-100 < gradient_norm < 1e100 or gradient_norm == 0.0 else 1.0 / gradient_norm


def power_for(gradient_norm: float, dtype: torch.dtype) -> float:
    """A power of two by which a gradient near a minimum is multiplied: float32 ends at 1e-38.

    >>> power_for(1e-3, torch.float32), power_for(2.0**-70, torch.float32) == 2.0**70
    (1.0, True)
    >>> power_for(1e-44, torch.float32) == 2.0**126
    True
    """
    is_usual = gradient_norm > 1e-4 or gradient_norm == 0.0
    most = round(-math.log2(torch.finfo(dtype).tiny))
    return 1.0 if is_usual else scale_to_one(gradient_norm, most)


@dataclass
class Counts:
    """Evaluations so far of f and its gradient, and curvature products, in SciPy's names."""

    nfev: int = 0
    njev: int = 0
    nhev: int = 0
    nraised: int = 0
    """Trial points at which f raised an error."""
    last_error: str = ""
    """The last such error."""
    is_unbounded: bool = False
    """Whether f was minus infinity at a trial point."""
    per_curvature: int = 0
    """What the entries of the curvature at a point cost in products; 0 before the first."""
    noise: float = 0.0
    """The rounding error of f as it was measured, where it was: see noise.py."""

    def told(self, text: str, function: str) -> str:
        """A text, and after it what the function raised at trial points, if it did."""
        if not self.nraised:
            return text
        return f"{text} {function} raised at {self.nraised} trial points; last: {self.last_error}"

    def note(self, error: Exception) -> None:
        """Record why a trial point is not usable."""
        if isinstance(error, NonFiniteError):
            self.is_unbounded = self.is_unbounded or error.got == "-inf"
        else:
            self.nraised += 1
            first = (str(error).strip().splitlines() or [""])[0]
            self.last_error = f"{type(error).__name__}: {first}"[:200]


class Point:
    """x with f(x), grad f(x) and the curvature there, each computed when first asked for.

    The curvature operator keeps the graph of f at x: the gradient at a trial point whose value is
    known needs no second forward pass.

    Args:
        x: flat.
        curvature: the operator at x, which gives value and gradient too.
        counts: where evaluations are counted.
        is_trial: whether a search may reject it: an error of f is then an infinite value.
        matrix: makes the curvature, where that is another operator.
        box: the bounds on x, if there are some.
        is_left: whether the next step is of another f, which does not ask for this gradient.
    """

    def __init__(
        self,
        x: Tensor,
        curvature: CurvatureOperator,
        counts: Counts,
        *,
        is_trial: bool = True,
        matrix: Callable[[], LinearOperator] | None = None,
        box: Box | None = None,
        is_left: bool = False,
    ) -> None:
        self.x, self._curvature, self._counts = x, curvature, counts
        self._is_trial, self._matrix, self.box = is_trial, matrix, box
        self._is_left = is_left

    @property
    def space(self) -> Space:
        """The space of x, whose inner product the methods use."""
        return self._curvature.domain

    @cached_property
    def value(self) -> float:
        """f(x); infinite where f is not finite or raises, so that a search rejects it."""
        self._counts.nfev += 1
        value = self._attempt(lambda: float(self._curvature.value))
        return math.inf if value is None else value

    @cached_property
    def is_usable(self) -> bool:
        """Whether f and its gradient are finite here, so that a search may move here."""
        if not self.value < math.inf:
            return False
        return self._is_left or self._attempt(lambda: self.is_finite) or False

    @property
    def is_finite(self) -> bool:
        """Whether f and its gradient are finite here."""
        return math.isfinite(self.value) and math.isfinite(self.gradient_norm)

    @property
    def rounding_error(self) -> float:
        """How much f(x) may change through rounding: 10 times eps |f(x)| or what was measured."""
        return 10 * max(torch.finfo(self.x.dtype).eps * abs(self.value), self._counts.noise)

    @cached_property
    def gradient(self) -> Tensor:
        """grad f(x), flat."""
        self._counts.njev += 1
        return self._curvature.flat_gradient

    @cached_property
    def free(self) -> Tensor | None:
        """Which variables may move downhill within their bounds; None without bounds."""
        return None if self.box is None else self.box.free(self.x, self.gradient)

    @property
    def projected_gradient(self) -> Tensor:
        """The gradient along the variables that are free; zero at a minimum within bounds."""
        return self.gradient if self.free is None else self.gradient * self.free

    @cached_property
    def num_free(self) -> int:
        """How many variables are free."""
        return self.space.n if self.free is None else self.space.count(self.free)

    @cached_property
    def gradient_norm(self) -> float:
        """The norm of the (projected) gradient."""
        return self.space.norm(self.projected_gradient)

    @cached_property
    def curvature(self) -> LinearOperator:
        """The curvature as an operator that counts its products."""
        return self.counted(self._curvature if self._matrix is None else self._matrix())

    @property
    def has_curvature(self) -> bool:
        """Whether the curvature has been made, so that a resumed run must not count it again."""
        return "curvature" in vars(self)

    @property
    def entries_to_come(self) -> int:
        """The products that the entries of the curvature will cost here; 0 once it is made."""
        return 0 if self.has_curvature else self._counts.per_curvature

    def reduced(self, operator: LinearOperator) -> LinearOperator:
        """An operator on the variables that are free, zero on the others."""
        return operator if self.free is None else Masked(operator, self.free)

    def counted(self, operator: LinearOperator) -> LinearOperator:
        """Another operator at this point, whose products are counted with those of `curvature`."""
        return _CountingOperator(operator, self._counts)

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Do not count the products in this block, as where a resumed run takes them again."""
        before = self._counts.nhev
        try:
            yield
        finally:
            self._counts.nhev = before

    def _attempt(self, compute: Callable[[], T]) -> T | None:
        """The result; None if this is a trial point outside of the domain of f."""
        try:
            return compute()
        except NonFiniteError as error:
            self._counts.note(error)
            return None
        except Exception as error:
            if not (self._is_trial and is_outside_domain(error)):
                raise
            self._counts.note(error)
            return None


class Objective:
    """A function to minimise, as a map from flat vectors to points.

    Args:
        curvature: the curvature operator at one point; its `at` gives those at others.
        counts: where evaluations are counted; default: new counts.
        matrix: x -> the curvature at a point, a tree, where that is another operator.
        box: bounds, to which points are projected.
        is_left: whether the next step is of another function: trial points need no gradient then.
    """

    def __init__(
        self,
        curvature: CurvatureOperator,
        counts: Counts | None = None,
        matrix: Callable[[Tree], LinearOperator] | None = None,
        box: Box | None = None,
        *,
        is_left: bool = False,
    ) -> None:
        self._start, self._matrix, self.box = curvature, matrix, box
        self._is_left = is_left
        self.space: Space = curvature.domain
        self.counts = counts or Counts()

    def start(self, x: Tensor) -> Point:
        """The point of the given curvature operator; an error of f there is the caller's."""
        return Point(
            x, self._start, self.counts, is_trial=False, matrix=self._matrix_at(x), box=self.box
        )

    def point(self, x: Tensor) -> Point:
        """Another point; nothing is computed before it is asked for."""
        x = x if self.box is None else self.box.project(x)
        there = self._start.at(self.space.unflatten(x))
        matrix = self._matrix_at(x)
        return Point(x, there, self.counts, matrix=matrix, box=self.box, is_left=self._is_left)

    def _matrix_at(self, x: Tensor) -> Callable[[], LinearOperator] | None:
        matrix = self._matrix
        return None if matrix is None else lambda: matrix(self.space.unflatten(x))


class _CountingOperator(LinearOperator):
    """An operator whose products are counted."""

    def __init__(self, a: LinearOperator, counts: Counts) -> None:
        super().__init__(a.domain, symmetric=a.symmetric)
        self._a, self._counts = a, counts

    def _matvec(self, v: Tensor) -> Tensor:
        self._counts.nhev += 1
        return self._a._matvec(v)

    def _curvature(self, v: Tensor) -> float:
        self._counts.nhev += 1
        return self._a._curvature(v)

    def _inverse(self) -> LinearOperator | None:
        return self._a._inverse()

    def _plus_diagonal(self, D: LinearOperator) -> LinearOperator | None:
        return self._a._plus_diagonal(D)

    def _num_negative(self) -> int | None:
        return self._a._num_negative()

    @property
    def is_structured(self) -> bool:
        return self._a.is_structured
