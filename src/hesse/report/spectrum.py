# SPDX-License-Identifier: Apache-2.0
"""The spectrum of a Hessian: that of the autoencoder before and after training, and tables."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hesse.curvature import CurvatureOperator, hessian_operator
from hesse.estimators import (
    Estimate,
    LanczosDensity,
    SpectralDensity,
    spectral_density,
    trace,
)
from hesse.krylov import Eigenpairs, Lanczos, eigsh
from hesse.report.digits import reconstruction_loss
from hesse.risk.risk import Risk


@dataclass
class Spectrum:
    """Extreme eigenvalues and trace after training; densities before and after."""

    n: int
    largest: Eigenpairs
    smallest: Eigenpairs
    trace: Estimate
    before: SpectralDensity
    after: SpectralDensity


def hessian_of(model: nn.Module, pixels: Tensor) -> CurvatureOperator:
    """The exact Hessian of the training loss at the model's parameters, in float64.

    Its eigenvalues span eight orders of magnitude: in float32 rounding hides the small ones.
    """
    model, pixels = copy.deepcopy(model).double(), pixels.double()
    risk = Risk(model, reconstruction_loss, (pixels, pixels))
    return hessian_operator(risk, risk.params)


def measure_spectrum(
    start: nn.Module,
    trained: nn.Module,
    pixels: Tensor,
    seed: int,
    steps: int,
    tick: Callable[[float], None],
) -> Spectrum:
    """Extreme eigenvalues and trace after training, spectral density before and after."""
    generator = torch.Generator().manual_seed(seed)
    before, after = hessian_of(start, pixels), hessian_of(trained, pixels)
    method = LanczosDensity(steps=steps)
    density_before = spectral_density(before, method=method, probes=4, generator=generator)
    tick(0.25)
    density_after = spectral_density(after, method=method, probes=4, generator=generator)
    tick(0.5)
    largest = eigsh(after, 5, "LA", rtol=1e-3, max_products=4 * steps, generator=generator)
    tick(0.6)
    smallest = eigsh(
        after,
        3,
        "SA",
        method=Lanczos(basis_size=2 * steps),
        rtol=1e-2,
        max_products=8 * steps,
        generator=generator,
    )
    tick(0.85)
    estimate = trace(after, rtol=0.05, max_products=2 * steps, generator=generator)
    tick(1.0)
    return Spectrum(after.shape[0], largest, smallest, estimate, density_before, density_after)


def eigenvalue_table(largest: Eigenpairs, smallest: Eigenpairs) -> dict[str, Any]:
    """The eigenvalues at both ends, each with its bound."""
    rows = []
    for name, pairs in (("largest", largest), ("smallest", smallest)):
        for value, residual, done in zip(
            pairs.values, pairs.residuals, pairs.converged, strict=True
        ):
            note = "yes" if done else "not yet"
            rows.append([name, f"{float(value):.5g}", f"{float(residual):.1e}", note])
    return {"head": ["end of the spectrum", "eigenvalue", "within", "converged"], "rows": rows}


def on_negative_curvature(smallest: Eigenpairs) -> str:
    """Whether there is a direction of negative curvature, as far as the bound says."""
    value, bound = float(smallest.values[0]), float(smallest.residuals[0])
    if value + bound < 0.0:
        return "There are directions of negative curvature: this is no minimum yet."
    if value - bound > 0.0:
        return "No direction of negative curvature was found."
    return "Whether there is negative curvature is within the bound of the smallest: undecided."
