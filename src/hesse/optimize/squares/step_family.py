# SPDX-License-Identifier: Apache-2.0
r"""The damped steps of a linear least-squares model, all from one factorisation.

With A = U S V' the minimiser of |f + A p|^2 + lambda |p|^2 is

$$ p(\lambda) = -V \operatorname{diag}\Bigl(\frac{s_i}{s_i^2 + \lambda}\Bigr) U^T f $$

so that one decomposition of A, or of A on a Krylov space, gives the step for every lambda, and its
model value, without the matrix A'A.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

# Newton's steps for the lambda of a radius, and how exactly |p| is to be the radius.
_MAX_ROOT_STEPS = 30
_RADIUS_RTOL = 1e-3


@dataclass(frozen=True)
class Step:
    """A step p, with what the model says of it."""

    p: Tensor
    """In scaled variables, of the dtype of the variables."""
    length: float
    predicted: float
    """The decrease of |f + A p|^2 / 2, positive."""
    is_limited: bool
    """Whether the radius shortened it."""
    damping: float = 0.0
    """lambda."""


class StepFamily:
    """p(lambda) for a matrix by its singular values.

    Args:
        s: singular values, float64 on the CPU, descending.
        c: U'f.
        span: y -> V y as a vector of variables.
        epsilon: singular values below `epsilon` times the largest count as zero.
        products: with the matrix, taken for this.
        project: r -> U'r, where U is kept.
        is_complete: whether the steps are those of the whole space, not of a part of it.

    >>> A, f = torch.diag(torch.tensor([2.0, 1.0])).double(), torch.tensor([2.0, 1.0]).double()
    >>> family = from_dense(A, f, 1e-15, torch.float64)
    >>> family.within(10.0).p, round(family.within(1.0).length, 2)
    (tensor([-1., -1.], dtype=torch.float64), 1.0)
    """

    def __init__(
        self,
        s: Tensor,
        c: Tensor,
        span: Callable[[Tensor], Tensor],
        *,
        epsilon: float,
        products: int = 0,
        project: Callable[[Tensor], Tensor] | None = None,
        is_complete: bool = True,
    ) -> None:
        keep = s > epsilon * s[:1] if len(s) else s > 0
        self.s, self.c, self._keep = s[keep], c[keep], keep
        self._span, self._project, self.products = span, project, products
        self.is_complete = is_complete

    @property
    def rank(self) -> int:
        """The number of singular values that are not zero up to rounding."""
        return len(self.s)

    @cached_property
    def full_length(self) -> float:
        """The length of the Gauss-Newton step, lambda = 0."""
        return self._length(0.0)

    @cached_property
    def full_decrease(self) -> float:
        """What the Gauss-Newton step would take from the model."""
        return self._decrease(0.0)

    def is_within(self, radius: float) -> bool:
        """Whether the Gauss-Newton step is at most so long."""
        return self.full_length <= radius

    def promises(self, decrease: float) -> bool:
        """Whether the Gauss-Newton step takes more than that from the model."""
        return self.full_decrease > decrease

    def within(self, radius: float) -> Step:
        """The minimiser of the model for |p| <= radius."""
        is_limited = self.full_length > radius * (1 + _RADIUS_RTOL)
        damping = self._damping(radius) if is_limited else 0.0
        y = torch.zeros(len(self._keep), dtype=torch.float64)
        y[self._keep] = -self.s * self.c / (self.s**2 + damping)
        length, predicted = self._length(damping), self._decrease(damping)
        return Step(self._span(y), length, predicted, is_limited, damping)

    def correction(self, r: Tensor, damping: float) -> Tensor | None:
        """The step of the same matrix and damping for other residuals."""
        if self._project is None:
            return None
        y = torch.zeros(len(self._keep), dtype=torch.float64)
        c = self._project(r)[self._keep]
        y[self._keep] = -self.s * c / (self.s**2 + damping)
        return self._span(y)

    def last_coefficient(self, radius: float, vectors: Tensor) -> float:
        """The last entry of V y for the step within a radius, V by its rows."""
        damping = self._damping(radius) if self.full_length > radius else 0.0
        return abs(float(vectors[-1, self._keep] @ (self.s * self.c / (self.s**2 + damping))))

    def _length(self, damping: float) -> float:
        return float((self.s * self.c / (self.s**2 + damping)).norm())

    def _decrease(self, damping: float) -> float:
        """(|f|^2 - |f + A p|^2) / 2: c_i^2 (1 - (lambda / (s^2 + lambda))^2) / 2, added up."""
        left = damping / (self.s**2 + damping) if damping else torch.zeros_like(self.s)
        return 0.5 * float((self.c**2 * (1 - left) * (1 + left)).sum())

    def _damping(self, radius: float) -> float:
        """lambda with |p(lambda)| = radius."""
        return damping_of_length(self.s**2, self.s * self.c, radius)


def damping_of_length(h: Tensor, g: Tensor, radius: float) -> float:
    """lambda >= 0 with |g / (h + lambda)| = radius, for h > 0 and a length of g / h above radius.

    By Newton's method on the reciprocal of that length, which is nearly linear (More 1978,
    doi:10.1007/BFb0067700, section 5).

    >>> h, g = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0])
    >>> abs(damping_of_length(h, g, 1.0) - 2.0) < 1e-2
    True
    """
    unit = float(h.max())  # squares of h and g would leave the range of float64
    h, g = h / unit, g / unit
    lower, upper = 0.0, float(g.norm()) / radius
    damping = 1e-3 * upper
    for _ in range(_MAX_ROOT_STEPS):
        quotient = g / (h + damping)
        length = float(quotient.norm())
        if abs(length - radius) <= _RADIUS_RTOL * radius:
            break
        slope = float((quotient**2 / (h + damping)).sum()) / length
        if length > radius:
            lower = max(lower, damping)
        else:
            upper = min(upper, damping)
        damping += (length - radius) / radius * length / slope
        if not lower < damping < upper:
            damping = max(1e-3 * upper, math.sqrt(lower * upper))
    return unit * damping


def from_dense(A: Tensor, f: Tensor, epsilon: float, dtype: torch.dtype) -> StepFamily:
    """The steps of a matrix (m, n) and residuals (m,), in float64.

    Cost: a QR factorisation if one side is long, and a singular value decomposition; for a tall
    matrix of float32 a third of that, by the eigenvalues of A'A.
    """
    m, n = A.shape
    if is_by_gram(A):
        return _from_gram(A.double(), f.double(), epsilon, dtype)
    A, f = A.double(), f.double()
    reflections = P = None
    if m > 2 * n:
        reflections = torch.geqrf(A)  # without Q, which would take as long again
        A = reflections[0][:n].triu()
    elif n > 2 * m:
        P, R = torch.linalg.qr(A.T)
        A = R.T
    U, s, Vh = torch.linalg.svd(A, full_matrices=False)

    def project(r: Tensor) -> Tensor:
        r = r.double()
        if reflections is not None:
            r = torch.ormqr(*reflections, r[:, None], transpose=True)[:n, 0]
        return (U.T @ r).cpu()

    def span(y: Tensor) -> Tensor:
        p = y.to(Vh.device) @ Vh
        return (p if P is None else P @ p).to(dtype)

    return StepFamily(
        s.cpu(),
        project(f),
        span,
        epsilon=epsilon,
        project=project,
    )


def is_by_gram(A: Tensor) -> bool:
    """Whether A'A is formed, in float64, which takes a third of the time."""
    return A.dtype == torch.float32 and A.shape[0] >= A.shape[1]


def _from_gram(A: Tensor, f: Tensor, epsilon: float, dtype: torch.dtype) -> StepFamily:
    """The same where the entries of A have half of the digits of float64.

    Their products are exact then, and the rounding of A itself hides singular values below 1e-7 of
    the largest, whose squares float64 still tells apart.
    """
    h, V = torch.linalg.eigh(A.T @ A)
    h, V = h.flip(0), V.flip(1)
    s = h.clamp(min=torch.finfo(h.dtype).eps ** 2 * float(h[0])).sqrt()

    def project(r: Tensor) -> Tensor:
        return ((V.T @ (A.T @ r.double())) / s).cpu()

    return StepFamily(
        s.cpu(),
        project(f),
        lambda y: (V @ y.to(V.device)).to(dtype),
        epsilon=epsilon,
        project=project,
    )
