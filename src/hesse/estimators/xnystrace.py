# SPDX-License-Identifier: Apache-2.0
r"""XNysTrace: leave-one-out estimates from the Nystroem approximation of a psd operator.

$$ \hat A = Y (\Omega^T Y)^{-1} Y^T, \quad Y = A \Omega; \qquad
   \operatorname{tr} \hat A_{(i)} = \operatorname{tr} \hat A - \frac{|Y P e_i|^2}{p_{ii}}, \quad
   \omega_i^T (A - \hat A_{(i)}) \omega_i = \frac{1}{p_{ii}}, \quad P = (\Omega^T Y)^{-1} $$

One product a probe serves both purposes. A is shifted by a few rounding errors so that P exists.

Reference: Epperly, Tropp & Webber 2024, doi:10.1137/23M1548323 (XNysTrace with normalisation); the
standard error is that of `leave_out`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from hesse.errors import OperatorError
from hesse.estimators.estimate import Estimate
from hesse.estimators.estimator_run import EstimatorRun
from hesse.estimators.leave_out import mean_and_error
from hesse.estimators.probes import on_the_sphere
from hesse.estimators.sketch import Sketch, grow_until_met, grown_gram, no_entries
from hesse.methods import Hyperparameters
from hesse.operators.checks import check_symmetric

_SHIFT = 10.0  # in rounding errors of a product


@dataclass
class _NystromSketch(Sketch):
    """A sketch and the products of its probes with the basis and with one another."""

    W: Tensor = field(default_factory=no_entries)
    """Q'Omega."""
    overlap: Tensor = field(default_factory=no_entries)
    """Omega'Omega."""


@dataclass(frozen=True, repr=False)
class XNysTrace(Hyperparameters):
    """XNysTrace: `XTrace` from one product a probe, for positive semidefinite A.

    Of `trace`. The standard error is as of `XTrace`.

    Cost: 1 product and 2 vectors a probe, and 2 vectors more if one probe is added at a time, 4
        for blocks of eight.

    Raises:
        HesseError: A is not symmetric; a vector v with v'A v < 0 was found.

    Reference: Epperly, Tropp & Webber 2024, doi:10.1137/23M1548323.

    >>> from hesse.estimators import trace
    >>> round(trace(torch.ones(20, 20), method=XNysTrace()).value, 4)
    20.0
    """

    name: ClassVar[str] = "xnystrace"

    def estimate_trace(self, run: EstimatorRun) -> Estimate:
        """The trace from a sketch that grows."""
        A, space = run.A, run.A.domain
        check_symmetric(A)
        state = _NystromSketch(space.n, run.generator)

        def add_probes(count: int) -> None:
            probes = on_the_sphere(space, count, run.generator)
            state.grow(A, probes, run.block_size, _SHIFT)
            state.W = grown_gram(space, state.W, state.basis, state.probes)
            state.overlap = grown_gram(space, state.overlap, state.probes, state.probes)
            state.value, state.standard_error = _trace_of(state)

        return grow_until_met(run, state, cost=1, held=2, add_probes=add_probes)


def _trace_of(sketch: _NystromSketch) -> tuple[float, float]:
    n, m, overlap = sketch.n, sketch.size, sketch.overlap
    core = sketch.W.T @ sketch.R  # Omega' Y
    inverse = _inverse_factor(core, overlap)
    factor = sketch.R @ inverse.T
    whole = float((factor**2).sum()) - sketch.shift * n
    if m == n:
        return whole, 0.0
    K = (factor @ inverse).T @ (factor @ inverse)  # P Y'Y P
    P = inverse.T @ inverse
    Q = torch.linalg.inv(overlap)
    p, k, q = P.diagonal(), K.diagonal(), Q.diagonal()
    h = whole - k / p + (n - m + 1) * q / p
    # The same two by two: without j, P_ii becomes P_ii - P_ij^2 / P_jj, and so on.
    off = 1 - torch.eye(m, dtype=torch.float64)
    left = p[:, None] - off * P**2 / p
    lost = (p * k[:, None] + p[:, None] * k - 2 * P * K) / (p[:, None] * p - off * P**2)
    free = q[:, None] - off * Q**2 / q
    return mean_and_error(h, h[:, None] - (whole - lost + (n - m + 2) * free / left))


def _inverse_factor(core: Tensor, overlap: Tensor) -> Tensor:
    """The inverse of the Cholesky factor of Omega'A Omega, which must be positive definite."""
    core = (core + core.T) / 2
    factor, failed = torch.linalg.cholesky_ex(core)
    if int(failed):
        values, vectors = torch.linalg.eigh(core)
        v = vectors[:, 0]
        raise OperatorError(
            expected="a positive semidefinite operator, for method='xnystrace'",
            got=f"a vector v with v'A v / v'v = {float(values[0] / (v @ overlap @ v)):.3g}",
            remedy="Use method='xtrace', or add damping, A + c * hesse.identity_operator(n).",
        )
    eye = torch.eye(len(core), dtype=torch.float64)
    return torch.linalg.solve_triangular(factor, eye, upper=False)
