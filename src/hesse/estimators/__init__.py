# SPDX-License-Identifier: Apache-2.0
"""Estimates of what a matrix is like from its products with random vectors, each with its error."""

from hesse.estimators.estimate import Estimate
from hesse.estimators.spectral_density import SpectralDensity, spectral_density
from hesse.estimators.trace import trace

__all__ = ["Estimate", "SpectralDensity", "spectral_density", "trace"]
