# SPDX-License-Identifier: Apache-2.0
"""Estimates of properties of a matrix from its products with random vectors, with their errors.

A method with options is an object, `trace(A, method=XTrace())`; its name stands for the default
one.
"""

from hesse.estimators.count_eigenvalues import count_eigenvalues
from hesse.estimators.density import SpectralDensity
from hesse.estimators.diagonal import diagonal
from hesse.estimators.estimate import Estimate
from hesse.estimators.hutchinson import Hutchinson
from hesse.estimators.hutchpp import HutchPP
from hesse.estimators.kernel_polynomial import KernelPolynomial
from hesse.estimators.lanczos_density import LanczosDensity
from hesse.estimators.logdet import logdet
from hesse.estimators.matrix_function import matrix_function
from hesse.estimators.norm import norm
from hesse.estimators.sample_normal import sample_normal
from hesse.estimators.spectral_density import spectral_density
from hesse.estimators.trace import trace
from hesse.estimators.xdiag import XDiag
from hesse.estimators.xnystrace import XNysTrace
from hesse.estimators.xtrace import XTrace

__all__ = [
    "Estimate",
    "HutchPP",
    "Hutchinson",
    "KernelPolynomial",
    "LanczosDensity",
    "SpectralDensity",
    "XDiag",
    "XNysTrace",
    "XTrace",
    "count_eigenvalues",
    "diagonal",
    "logdet",
    "matrix_function",
    "norm",
    "sample_normal",
    "spectral_density",
    "trace",
]
