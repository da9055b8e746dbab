# SPDX-License-Identifier: Apache-2.0
"""The density of eigenvalues by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.errors import ArgumentError, OperatorError
from hesse.krylov.lanczos import Lanczos
from hesse.operators.base import LinearOperator
from hesse.operators.dense import aslinearoperator
from hesse.progress import Callback, asks_to_stop, progress_bar
from hesse.vectors import rademacher


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
    """Nodes of the quadrature, (probes, steps): Ritz values."""
    weights: Tensor
    """Their weights, (probes, steps); each row sums to 1."""
    bandwidth: float
    """Standard deviation of the Gaussian that smooths."""
    products: int
    """Products with the operator."""

    def moment(self, power: int) -> float:
        """The mean of (eigenvalue)^power over the spectrum: tr(A^p) / n.

        Unaffected by the smoothing; its error is that of the probes alone for power < 2 steps.
        """
        return float((self.weights * self.nodes**power).sum(dim=1).mean())


def spectral_density(
    A: LinearOperator | Tensor,
    *,
    probes: int = 8,
    steps: int = 64,
    points: int = 1024,
    bandwidth: float | None = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    progress: bool = False,
) -> SpectralDensity:
    r"""The density of the eigenvalues of a symmetric operator, smoothed, with its uncertainty.

    $$ \phi_\sigma(t) = \frac1n \sum_{i=1}^n g_\sigma(t - \lambda_i)
       \approx \frac1m \sum_{j=1}^m \sum_k w_{jk}\, g_\sigma(t - \theta_{jk}) $$

    with theta_jk the Ritz values and w_jk the squared first components of the eigenvectors of the
    Lanczos matrix started from the j-th random vector of signs, and g a Gaussian of width sigma.

    Args:
        A: symmetric operator (or matrix).
        probes: m, at least 2 for an error.
        steps: Lanczos steps a probe.
        points: size of the grid, which spans the Ritz values and four bandwidths beyond.
        bandwidth: sigma; default one hundredth of the range of the Ritz values.
        generator: of the signs.
        callback: called with the number of probes done; a true result stops.
        progress: show a bar.

    Cost: probes * steps products; steps + 1 vectors.

    References: Lin, Saad & Yang 2016, doi:10.1137/130934283; Ghorbani, Krishnan & Xiao 2019,
        arXiv:1901.10159.

    >>> density = spectral_density(torch.diag(torch.tensor([-1.0, 1.0, 3.0])))
    >>> round(density.moment(1), 4), round(density.moment(2), 4)    # mean of -1, 1, 3; of 1, 1, 9
    (1.0, 3.6667)
    """
    A = aslinearoperator(A)
    _check_arguments(A, probes, steps)
    rules: list[tuple[Tensor, Tensor]] = []
    products = 0
    A.expect(probes * steps)
    with progress_bar(progress, "spectral density", probes * min(steps, A.shape[0])) as bar:
        try:
            for done in range(probes):
                lanczos = Lanczos(
                    A, min(steps, A.shape[0]), rademacher(A.domain, generator), generator
                )
                lanczos.extend(min(steps, A.shape[0]), bar)
                nodes, coordinates, _ = lanczos.ritz()
                rules.append((nodes, coordinates[0] ** 2))
                products += lanczos.products
                if asks_to_stop(callback, done + 1):
                    break
        except KeyboardInterrupt:
            if not rules:
                raise
    nodes = torch.stack([nodes for nodes, _ in rules])
    weights = torch.stack([weights for _, weights in rules])
    return _smoothed(nodes, weights, points, bandwidth, products)


def _smoothed(
    nodes: Tensor, weights: Tensor, points: int, bandwidth: float | None, products: int
) -> SpectralDensity:
    low, high = float(nodes.min()), float(nodes.max())
    scale = max(high - low, 1e-3 * max(abs(low), abs(high)), 1e-30)
    sigma = 0.01 * scale if bandwidth is None else bandwidth
    grid = torch.linspace(low - 4 * sigma, high + 4 * sigma, points, dtype=torch.float64)
    z = (grid - nodes[:, :, None]) / sigma
    bumps = torch.exp(-0.5 * z**2) / (sigma * math.sqrt(2 * math.pi))
    curves = (weights[:, :, None] * bumps).sum(dim=1)
    m = len(curves)
    error = curves.std(dim=0) / math.sqrt(m) if m > 1 else torch.full_like(grid, math.inf)
    return SpectralDensity(grid, curves.mean(dim=0), error, nodes, weights, sigma, products)


def _check_arguments(A: LinearOperator, probes: int, steps: int) -> None:
    call = f"hesse.spectral_density({A})"
    if not A.symmetric:
        raise OperatorError(
            call,
            expected="a symmetric operator",
            got="one that is not known to be symmetric",
            remedy="Pass symmetric=True if A = A'.",
        )
    if probes < 1 or steps < 1:
        raise ArgumentError(
            call,
            expected="probes >= 1 and steps >= 1",
            got=f"probes={probes}, steps={steps}",
            remedy="Leave them out for 8 probes of 64 steps.",
        )
