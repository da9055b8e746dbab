# SPDX-License-Identifier: Apache-2.0
"""Estimates of what a matrix is like from its products with random vectors, each with its error."""

from hesse.estimators.count_eigenvalues import count_eigenvalues
from hesse.estimators.density import SpectralDensity
from hesse.estimators.diagonal import diagonal
from hesse.estimators.estimate import Estimate
from hesse.estimators.logdet import logdet
from hesse.estimators.matrix_function import matrix_function
from hesse.estimators.norm import norm
from hesse.estimators.sample_normal import sample_normal
from hesse.estimators.spectral_density import spectral_density
from hesse.estimators.trace import trace

__all__ = [
    "Estimate",
    "SpectralDensity",
    "count_eigenvalues",
    "diagonal",
    "logdet",
    "matrix_function",
    "norm",
    "sample_normal",
    "spectral_density",
    "trace",
]
