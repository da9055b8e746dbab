# SPDX-License-Identifier: Apache-2.0
"""A density of eigenvalues with its band of uncertainty: what `spectral_density` returns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.errors import MissingExtraError, Status
from hesse.estimators.estimate import student


@dataclass(frozen=True)
class SpectralDensity:
    """A smoothed density of eigenvalues with a band of uncertainty; see `spectral_density`."""

    grid: Tensor
    """Where the density is given, shape (g,), ascending."""
    density: Tensor
    """The density there, shape (g,); its integral is 1."""
    standard_error: Tensor
    """Its standard error over the probes, shape (g,)."""
    nodes: Tensor
    """Nodes of the quadrature, (probes, steps): Ritz values, some of them more than once, or
    Chebyshev points."""
    weights: Tensor
    """Their weights, (probes, steps); each row sums to 1."""
    bandwidth: float
    """Standard deviation of the Gaussian that smooths; of the Jackson kernel, mid-spectrum."""
    products: int
    """Products with the operator."""
    status: Status = Status.CONVERGED
    """Why it ended."""

    @property
    def interval(self) -> tuple[Tensor, Tensor]:
        """(low, high), each (g,): at each point it holds the smoothed density in 95 of 100 runs.

        Student's interval on a logarithmic scale: curves are positive, and where few eigenvalues
        contribute they vary by their own size, skewly, like chi-squared samples. With three
        quarters of the usual freedom such an interval covers 93 to 96% for 1 to infinitely many
        degrees of them, from 8 probes on.
        """
        probes = len(self.nodes)
        if probes < 2:
            return torch.zeros_like(self.density), torch.full_like(self.density, math.inf)
        quantile = student(max(1, 3 * (probes - 1) // 4))
        tiny = torch.finfo(self.density.dtype).tiny
        factor = torch.exp(quantile * self.standard_error / self.density.clamp(min=tiny))
        return self.density / factor, self.density * factor

    @property
    def error(self) -> float:
        """The integral of the standard error: an absolute error, as the density integrates to 1."""
        return float(self.standard_error.sum() * (self.grid[1] - self.grid[0]))

    def moment(self, power: int) -> float:
        """The mean of (eigenvalue)^power over the spectrum: tr(A^p) / n.

        By Lanczos it is unaffected by the smoothing, and its error that of the probes alone for
        power < 2 steps. By kernel polynomials it is that of the smoothed density.
        """
        return float((self.weights * self.nodes**power).sum(dim=1).mean())

    def plot(self, axes: Any = None) -> Any:
        """Draw the density and its 95% band; returns the matplotlib axes (new ones by default)."""
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise MissingExtraError(
                "hesse.SpectralDensity.plot",
                expected="matplotlib",
                got=str(error),
                remedy="pip install 'hesse[report]'",
            ) from error
        axes = pyplot.subplots()[1] if axes is None else axes
        grid, (low, high) = self.grid.numpy(), self.interval
        top = 2 * float(self.density.max())  # with few probes the band may have no upper end
        axes.fill_between(grid, low.numpy(), high.clamp(max=top).numpy(), alpha=0.25, linewidth=0)
        axes.plot(grid, self.density.numpy())
        axes.set(xlabel="eigenvalue", ylabel="density")
        return axes


def mean_and_error(curves: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard error of curves, one a probe."""
    m = len(curves)
    error = curves.std(dim=0) / math.sqrt(m) if m > 1 else torch.full_like(curves[0], math.inf)
    return curves.mean(dim=0), error
