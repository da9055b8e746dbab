# SPDX-License-Identifier: Apache-2.0
"""The least curvature at a point, from products with the Hessian and from its factors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hesse.krylov.lanczos_process import LanczosProcess
from hesse.operators.algebra import LinearOperator

# Solves with factors: so many find the eigenvalues next to zero to a digit or two, and so many more
# are taken to find a direction of negative curvature that is there.
_SOLVES, _MOST_SOLVES = 6, 60


@dataclass(frozen=True)
class Ritz:
    """The smallest Ritz value of a Hessian with its vector, and the largest absolute value."""

    smallest: float
    largest: float
    direction: Tensor

    @property
    def eps(self) -> float:
        """Of the dtype of the vectors."""
        return torch.finfo(self.direction.dtype).eps

    @property
    def is_positive(self) -> bool:
        """Whether the smallest value is positive beyond rounding."""
        return self.smallest > self.eps**0.5 * self.largest

    @property
    def is_flat(self) -> bool:
        """Whether it is zero up to rounding."""
        return abs(self.smallest) <= self.eps**0.5 * self.largest

    @property
    def is_clearly_negative(self) -> bool:
        """Whether it is negative by more than errors in x explain."""
        return self.smallest < -(self.eps ** (1 / 3)) * self.largest


def by_products(
    hessian: LinearOperator,
    start: Tensor,
    steps: int,
    generator: torch.Generator,
    goes_on: Callable[[], bool],
) -> Ritz:
    """What a Lanczos process of so many steps finds: an upper bound on the least curvature."""
    lanczos = LanczosProcess(hessian, steps, start, generator)
    lanczos.step()
    # A random start has a component along every eigenvector: an invariant subspace is enough.
    while lanczos.size < steps and lanczos.beta > 0.0 and goes_on():
        lanczos.step()
    values, coordinates, _ = lanczos.ritz()
    direction = lanczos.combine(coordinates[:, :1])[0]
    return Ritz(float(values[0]), float(values.abs().max()), direction)


def by_factors(
    hessian: LinearOperator, found: Ritz, start: Tensor, generator: torch.Generator
) -> Ritz:
    """What factors of the Hessian add to what products have found, if it has factors.

    The signs of their pivots tell whether there is negative curvature, however little. A Lanczos
    process on the inverse then finds the eigenvalue next to zero on that side.
    """
    negative = _num_negative(hessian)
    inverse = None if negative is None else hessian._inverse()
    if inverse is None or found.is_clearly_negative:
        return found
    size, sign = hessian.domain.n, -1.0 if negative else 1.0
    most = min(_MOST_SOLVES if negative else _SOLVES, size)
    lanczos = LanczosProcess(inverse, most, start, generator)
    while lanczos.size < most and (lanczos.size == 0 or lanczos.beta > 0.0):
        lanczos.step()
        if lanczos.size % _SOLVES == 0 and _nearest_zero(lanczos, sign)[0] * sign > 0.0:
            break
    theta, coordinates = _nearest_zero(lanczos, sign)
    if theta * sign <= 0.0:
        return found
    return replace(found, smallest=1.0 / theta, direction=lanczos.combine(coordinates)[0])


def _nearest_zero(lanczos: LanczosProcess, sign: float) -> tuple[float, Tensor]:
    """The Ritz value of the inverse that is the largest on one side, and its coordinates."""
    values, coordinates, _ = lanczos.ritz()
    j = int((sign * values).argmax())
    return float(values[j]), coordinates[:, j : j + 1]


def definite_inverse(hessian: LinearOperator) -> LinearOperator | None:
    """H^-1 where factors show that H is positive definite; None where they do not."""
    return hessian._inverse() if _num_negative(hessian) == 0 else None


def _num_negative(hessian: LinearOperator) -> int | None:
    return hessian._num_negative() if hessian.is_structured else None
