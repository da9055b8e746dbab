# SPDX-License-Identifier: Apache-2.0
"""A point of a minimisation: value, gradient and curvature, computed once and counted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hesse.curvature.operator import GaussNewtonOperator, HessianOperator
from hesse.errors import NonFiniteError
from hesse.operators.algebra import LinearOperator
from hesse.vectors.space import Space

Curvature = HessianOperator | GaussNewtonOperator


@dataclass
class Counts:
    """Evaluations so far of f and its gradient, and curvature products, in SciPy's names."""

    nfev: int = 0
    njev: int = 0
    nhev: int = 0


class Point:
    """x with f(x), grad f(x) and the curvature there, each computed when first asked for.

    The curvature operator keeps the graph of f at x: the gradient at a trial point whose value is
    known needs no second forward pass.
    """

    def __init__(self, x: Tensor, curvature: Curvature, counts: Counts) -> None:
        self.x, self._curvature, self._counts = x, curvature, counts

    @property
    def space(self) -> Space:
        """The space of x, whose inner product the methods use."""
        return self._curvature.domain

    @cached_property
    def value(self) -> float:
        """f(x); infinite where f is not finite, so that a search rejects it."""
        self._counts.nfev += 1
        try:
            return float(self._curvature.value)
        except NonFiniteError:
            return math.inf

    @property
    def rounding_error(self) -> float:
        """How much f(x) may change through rounding: 10 eps |f(x)|."""
        return 10 * torch.finfo(self.x.dtype).eps * abs(self.value)

    @cached_property
    def gradient(self) -> Tensor:
        """grad f(x), flat."""
        self._counts.njev += 1
        return self._curvature.flat_gradient

    @cached_property
    def gradient_norm(self) -> float:
        """|grad f(x)|."""
        return self.space.norm(self.gradient)

    @cached_property
    def curvature(self) -> LinearOperator:
        """The curvature as an operator that counts its products."""
        return _CountingOperator(self._curvature, self._counts)


class Objective:
    """A function to minimise, as a map from flat vectors to points.

    Args:
        curvature: the curvature operator at one point; its `at` gives those at others.
        counts: where evaluations are counted; default: new counts.
    """

    def __init__(self, curvature: Curvature, counts: Counts | None = None) -> None:
        self._start = curvature
        self.space: Space = curvature.domain
        self.counts = counts or Counts()

    def start(self, x: Tensor) -> Point:
        """The point of the given curvature operator."""
        return Point(x, self._start, self.counts)

    def point(self, x: Tensor) -> Point:
        """Another point; nothing is computed before it is asked for."""
        return Point(x, self._start.at(self.space.unflatten(x)), self.counts)


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
