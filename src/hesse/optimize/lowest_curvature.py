# SPDX-License-Identifier: Apache-2.0
"""The least curvature at a point, from products with the Hessian and from its factors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hesse.krylov.lanczos_process import LanczosProcess
from hesse.operators.algebra import LinearOperator
from hesse.optimize.factory import shifted

# Solves with factors: so many find the eigenvalue next to zero to a digit or two, and so many that
# of a matrix which is just definite.
_SOLVES, _SHIFTED_SOLVES = 6, 20


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

    The signs of their pivots tell whether there is negative curvature, however little. A multiple
    of the identity that makes the matrix definite is then next to the least eigenvalue, which a
    Lanczos process on the inverse finds.
    """
    if found.is_clearly_negative or not hessian.is_structured:
        return found
    for shift in _shifts(found):
        A = shifted(hessian, shift)
        inverse = None if A is None else definite_inverse(A)
        if inverse is not None:
            steps = min(_SHIFTED_SOLVES if shift else _SOLVES, hessian.domain.n)
            lanczos = LanczosProcess(inverse, steps, start, generator)
            lanczos.extend(steps)
            values, coordinates, _ = lanczos.ritz()
            direction = lanczos.combine(coordinates[:, -1:])[0]
            return replace(found, smallest=1.0 / float(values[-1]) - shift, direction=direction)
    return found


def _shifts(found: Ritz) -> Iterator[float]:
    """Zero, then from where curvature counts as zero up to the largest, each ten times the last."""
    yield 0.0
    shift = found.eps**0.5 * found.largest
    while 0.0 < shift <= found.largest:  # nothing is larger where the matrix is zero
        yield shift
        shift *= 10.0


def definite_inverse(A: LinearOperator) -> LinearOperator | None:
    """A^-1 where factors show that A is positive definite; None where they do not."""
    return A._inverse() if A._num_negative() == 0 else None
