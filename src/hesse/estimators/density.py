# SPDX-License-Identifier: Apache-2.0
"""A density of eigenvalues with its band of uncertainty: what `spectral_density` returns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.errors import Status, check_choice
from hesse.estimators.estimate import student
from hesse.result import Result, pyplot

_EXACT = 1e-3  # what rounding may change of a density of all eigenvalues
_SPARSE = 1e-2  # a density is sparse if it is below this fraction of its peak on half of the grid
_FLOOR = 1e-8  # the lowest density on a logarithmic axis, as a fraction of the peak


@dataclass(frozen=True, repr=False)
class SpectralDensity(Result):
    """A smoothed density of eigenvalues with a band of uncertainty; see `spectral_density`."""

    grid: Tensor
    """Where the density is given, shape (g,), ascending."""
    density: Tensor
    """The density there, shape (g,); its integral is 1."""
    standard_error: Tensor
    """Its standard error over the probes, shape (g,)."""
    nodes: Tensor
    """Nodes of the quadrature, (probes, steps): Ritz values, some of them more than once, or
    Chebyshev points; all eigenvalues, (1, n), where they were computed."""
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
        contribute their deviation is of their own size, and skewed, as of chi-squared samples. With
        three quarters of the usual degrees of freedom such an interval covers 93 to 96% for
        chi-squared samples of any number of degrees of freedom, from 8 probes on.
        """
        probes = len(self.nodes)
        if not bool(self.standard_error.any()):
            return (1 - _EXACT) * self.density, (1 + _EXACT) * self.density
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

    @property
    def is_sparse(self) -> bool:
        """Whether most of the spectrum's range holds few eigenvalues, as of a neural network.

        The density is then below a hundredth of its peak on half of the grid, and only a
        logarithmic axis shows the outliers.
        """
        return float(self.density.median()) < _SPARSE * float(self.density.max())

    def moment(self, power: int) -> float:
        """The mean of (eigenvalue)^power over the spectrum: tr(A^p) / n.

        With `LanczosDensity` it is unaffected by the smoothing, and its error is that of the probes
        alone for power < 2 steps. With `KernelPolynomial` it is that of the smoothed density.
        """
        return float((self.weights * self.nodes**power).sum(dim=1).mean())

    @public("hesse.SpectralDensity.plot(axes, scale={scale})")
    def plot(self, axes: Any = None, scale: Literal["auto", "linear", "log"] = "auto") -> Any:
        """Draw the density and its 95% band with matplotlib.

        Args:
            axes: where to draw; new ones by default.
            scale: of the vertical axis; "auto" takes a logarithmic one if `is_sparse`.

        Returns:
            The axes.
        """
        check_choice("scale", scale, ["auto", "linear", "log"])
        if axes is None:
            axes = pyplot().subplots()[1]
        peak, (low, high) = float(self.density.max()), self.interval
        is_log = self.is_sparse if scale == "auto" else scale == "log"
        # With few probes the band may have no upper end; a logarithmic axis has no zero.
        floor, top = (_FLOOR * peak if is_log else 0.0), 2 * peak
        low, curve, high = (each.clamp(floor, top).numpy() for each in (low, self.density, high))
        axes.fill_between(self.grid.numpy(), low, high, alpha=0.25, linewidth=0)
        axes.plot(self.grid.numpy(), curve)
        axes.set(xlabel="eigenvalue", ylabel="density")
        if is_log:
            axes.set(yscale="log", ylim=(floor, top))
        return axes


def mean_and_error(curves: Tensor, *, exact: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and standard error of curves, one a probe; of an exact one it is 0."""
    m = len(curves)
    if exact:
        return curves[0], torch.zeros_like(curves[0])
    error = curves.std(dim=0) / math.sqrt(m) if m > 1 else torch.full_like(curves[0], math.inf)
    return curves.mean(dim=0), error
