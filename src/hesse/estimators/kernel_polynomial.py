# SPDX-License-Identifier: Apache-2.0
r"""The density of eigenvalues by the kernel polynomial method: damped Chebyshev moments.

$$ \mu_j = \frac1n \operatorname{tr} T_j(\tilde A) \approx \frac1n z^T T_j(\tilde A) z, \qquad
   \phi(t) = \frac{1}{\pi \sqrt{1 - t^2}} \Bigl( g_0 \mu_0 + 2 \sum_{j=1}^{N} g_j \mu_j T_j(t)
   \Bigr) $$

with A mapped to [-1, 1] and Jackson's factors g_j, which keep the density positive and smooth it by
about pi / N. A product gives two moments, by T_{2j} = 2 T_j^2 - 1 and T_{2j+1} = 2 T_{j+1} T_j - t.
No basis is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hesse.errors import OperatorError, Status, check_count
from hesse.estimators.density import SpectralDensity, mean_and_error
from hesse.estimators.density_run import DensityCriterion, DensitySampler
from hesse.estimators.estimator_run import EstimatorRun
from hesse.estimators.probes import products
from hesse.estimators.quadrature import Quadratures, vectors_held
from hesse.methods import Hyperparameters
from hesse.progress import uninterrupted

_BOUND_STEPS = 20


@dataclass(frozen=True, repr=False)
class KernelPolynomial(Hyperparameters):
    """The kernel polynomial method: a method of `spectral_density`, smooth everywhere.

    Args:
        degree: N, of the polynomials. Mid-spectrum it smooths with the standard deviation
            pi (high - low) / (2 N), where [low, high] is the range of the spectrum.

    Cost: N / 2 products a probe, and 20 in all that bound the spectrum; five vectors for each probe
        that advances (for n < 4096, where vectors are short, up to 23 for the bound).

    Raises:
        HesseError: an eigenvalue outside of the bound, as of an operator that is not symmetric.

    Reference: Weisse, Wellein, Alvermann & Fehske 2006, doi:10.1103/RevModPhys.78.275.

    >>> from hesse.estimators import spectral_density
    >>> density = spectral_density(torch.eye(20), method=KernelPolynomial(degree=200))
    >>> round(density.moment(1), 3)
    1.0
    """

    degree: int = 128
    name: ClassVar[str] = "kernel-polynomial"

    def _check(self) -> None:
        self._set(degree=check_count("degree", self.degree, 1))

    @property
    def products_per_probe(self) -> int:
        """What a probe takes, the bound of the spectrum excepted."""
        return (self.degree + 1) // 2

    @property
    def run_key(self) -> Mapping[str, Any]:
        """What the samples depend on."""
        return {"method": self.name, "degree": self.degree}

    def estimate_density(self, run: EstimatorRun[DensityCriterion], points: int) -> SpectralDensity:
        """The density on so many points."""
        return _MomentSampler(run, self.degree, self.products_per_probe, points).sample()


class _MomentSampler(DensitySampler):
    """The moments of the probes so far, one row each; the first also bounds the spectrum."""

    saved = (
        *("generator", "products", "centre", "half", "moments"),
        *("before", "now", "part", "exact"),
    )

    def __init__(
        self, run: EstimatorRun[DensityCriterion], degree: int, steps: int, points: int
    ) -> None:
        super().__init__(run, steps, points)
        self.degree = degree
        self.centre = self.half = 0.0
        self.moments = torch.empty(0, degree + 1, dtype=torch.float64)
        # Of the block: the last two polynomials of every probe, and the moments so far, as rows.
        self.before: Tensor | None = None
        self.now: Tensor | None = None
        self.part = torch.empty(0, 0, dtype=torch.float64)

    @property
    def count(self) -> int:
        return len(self.moments)

    @property
    def cost(self) -> int:
        return self.steps + (_BOUND_STEPS if self.half == 0.0 else 0)

    @property
    def held(self) -> int:
        moments = 5  # the last two polynomials, and what the next is computed from
        return moments if self.half else max(moments, vectors_held(self.A.domain.n, _BOUND_STEPS))

    @property
    def is_begun(self) -> bool:
        return self.before is not None

    def begin(self, probes: Tensor) -> None:
        self.before, self.now = probes, None
        self.part = torch.empty(len(probes), 0, dtype=torch.float64)

    def advance(self) -> bool:
        """Two more moments, by T_{2j} = 2 T_j^2 - 1 and T_{2j+1} = 2 T_{j+1} T_j - t."""
        before, now = self.before, self.now
        assert before is not None
        if self.half == 0.0:
            self._bound_spectrum(before[:1])
            return True
        if now is None:
            following = self._scaled(before)
            columns = [self._inner(before, before), self._inner(before, following)]
        else:
            before, following = now, 2 * self._scaled(now) - before
            even = 2 * self._inner(before, before) - self.part[:, 0]
            columns = [even, 2 * self._inner(following, before) - self.part[:, 1]]
        part = torch.cat([self.part, torch.stack(columns, dim=1)], dim=1)
        with uninterrupted():
            self.before, self.now, self.part = before, following, part
            self.products += len(before)
        if self.part.shape[1] < 2 * self.steps:
            return True
        self._complete(following)
        return False

    def _complete(self, now: Tensor) -> None:
        """The moments of the block, with the last one, which takes no product."""
        last = 2 * self._inner(now, now) - self.part[:, 0]
        part = torch.cat([self.part, last[:, None]], dim=1)
        moments = self._checked(part[:, : self.degree + 1] / self.A.domain.n)
        with uninterrupted():
            self.moments = torch.cat([self.moments, moments])
            self.before = self.now = None

    def _checked(self, moments: Tensor) -> Tensor:
        """These moments; raises if they grow, as outside of [-1, 1]."""
        if float(moments.abs().max()) > 1.01 * float(moments[:, 0].max()):
            raise self._outside_bound()
        return moments

    def _bound_spectrum(self, probe: Tensor) -> None:
        """Ritz values and the last off-diagonal entry bound the spectrum (Zhou & Li 2011)."""
        lanczos = Quadratures(self.A, probe, 1)
        lanczos.extend(min(_BOUND_STEPS, self.A.domain.n))
        nodes, _ = lanczos.rule(0)
        margin = lanczos.recurrence(0)[1][-1]
        with uninterrupted():
            self._set_range(float(nodes[0]) - margin, float(nodes[-1]) + margin)
            self.products += lanczos.products

    def _set_range(self, low: float, high: float) -> None:
        self.centre = 0.5 * (low + high)
        # One per cent of room for rounding, and some for a multiple of the identity.
        self.half = max(0.505 * (high - low), 1e-3 * abs(self.centre), 1e-30)

    def _scaled(self, rows: Tensor) -> Tensor:
        image = products(self.A, rows, self.run.block_size)
        return (image - self.centre * rows) / self.half

    def _inner(self, left: Tensor, right: Tensor) -> Tensor:
        values = self.A.domain.inner_pairs(*zip(left, right, strict=True))
        return torch.tensor(values, dtype=torch.float64)

    def _outside_bound(self) -> OperatorError:
        low, high = self.centre - self.half, self.centre + self.half
        return OperatorError(
            expected=f"a spectrum within [{low:.6g}, {high:.6g}], as {_BOUND_STEPS} steps bound it",
            got="Chebyshev moments that grow",
            remedy="Check the symmetry of A, or use method='lanczos'.",
        )

    def _moments_of(self, eigenvalues: Tensor) -> Tensor:
        """The moments of the whole spectrum, one row."""
        self._set_range(float(eigenvalues[0]), float(eigenvalues[-1]))
        angles = torch.acos((eigenvalues - self.centre) / self.half)
        j = torch.arange(self.degree + 1, dtype=torch.float64)
        return torch.cos(j[:, None] * angles).mean(dim=1)[None]

    @property
    def _moments_so_far(self) -> Tensor | None:
        """Those of the spectrum, of the complete probes, or of the block so far; one row each."""
        if self.exact is not None:
            return self._moments_of(self.exact[0])
        if self.count > 0:
            return self.moments
        return self.part / self.A.domain.n if self.part.shape[1] >= 2 else None

    def estimate(self, status: Status = Status.UNFINISHED) -> SpectralDensity | None:
        moments = self._moments_so_far
        if moments is None:
            return None
        degree = moments.shape[1] - 1
        moments = moments * _jackson(degree)
        moments[:, 1:] *= 2
        angles = torch.linspace(0.5, 2 * degree - 0.5, 2 * degree, dtype=torch.float64)
        angles = (math.pi * angles / (2 * degree)).flip(0)
        nodes = self.centre + self.half * torch.cos(angles)
        weights = _series(moments, angles) / (2 * degree)
        edge = math.cos(math.pi / (8 * degree))
        t = torch.linspace(-edge, edge, self.points, dtype=torch.float64)
        curves = _series(moments, torch.acos(t)) / (math.pi * self.half * torch.sqrt(1 - t**2))
        mean, error = mean_and_error(curves, exact=self.exact is not None)
        return SpectralDensity(
            self.centre + self.half * t,
            mean,
            error,
            nodes.expand(len(weights), -1),
            weights,
            math.pi * self.half / degree,
            self.products,
            status,
        )


def _jackson(degree: int) -> Tensor:
    """Jackson's factors g_0, ..., g_N (Weisse et al. 2006, eq. 71)."""
    j, m = torch.arange(degree + 1, dtype=torch.float64), degree + 2
    angle = math.pi / m
    return ((m - j) * torch.cos(angle * j) + torch.sin(angle * j) / math.tan(angle)) / m


def _series(coefficients: Tensor, angles: Tensor) -> Tensor:
    """sum_j c_j T_j(cos angle), one row a probe."""
    j = torch.arange(coefficients.shape[1], dtype=torch.float64)
    return coefficients @ torch.cos(j[:, None] * angles)
