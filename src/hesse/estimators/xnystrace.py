# SPDX-License-Identifier: Apache-2.0
r"""XNysTrace: leave-one-out estimates from the Nystroem approximation of a psd operator.

$$ \hat A = Y (\Omega^T Y)^{-1} Y^T, \quad Y = A \Omega; \qquad
   \operatorname{tr} \hat A_{(i)} = \operatorname{tr} \hat A - \frac{|Y P e_i|^2}{p_{ii}}, \quad
   \omega_i^T (A - \hat A_{(i)}) \omega_i = \frac{1}{p_{ii}}, \quad P = (\Omega^T Y)^{-1} $$

One product a probe serves both purposes. A is shifted by a rounding error's worth so that P exists.

Reference: Epperly, Tropp & Webber 2024, doi:10.1137/23M1548323 (XNysTrace with normalisation); the
standard error is that of `leave_out`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hesse.errors import OperatorError
from hesse.estimators.estimate import Estimate
from hesse.estimators.leave_out import mean_and_error
from hesse.estimators.probes import on_the_sphere
from hesse.estimators.sampling import Sampler
from hesse.estimators.sketch import Sketch, grow_until_met, grown_gram, no_entries

_SHIFT = 10.0  # in rounding errors of a product


@dataclass
class _NystroemSketch(Sketch):
    """A sketch and the products of its probes with the basis and with one another."""

    W: Tensor = field(default_factory=no_entries)
    """Q'Omega."""
    overlap: Tensor = field(default_factory=no_entries)
    """Omega'Omega."""


def xnystrace(sampler: Sampler) -> Estimate:
    """The trace by XNysTrace: one product a probe, two vectors."""
    A = sampler.A
    state = _NystroemSketch(A.shape[1], sampler.generator)

    def advance(more: int) -> None:
        probes = on_the_sphere(A, more, sampler.generator)
        state.grow(A, probes, sampler.block_size, sampler.call, _SHIFT)
        state.W = grown_gram(A, state.W, state.basis, state.probes)
        state.overlap = grown_gram(A, state.overlap, state.probes, state.probes)
        state.value, state.standard_error = _trace_of(state, sampler.call)

    return grow_until_met(sampler, state, cost=1, held=2, advance=advance)


def _trace_of(sketch: _NystroemSketch, call: str) -> tuple[float, float]:
    n, m, overlap = sketch.n, sketch.size, sketch.overlap
    core = sketch.W.T @ sketch.R  # Omega' Y
    inverse = _inverse_factor(core, overlap, call)
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


def _inverse_factor(core: Tensor, overlap: Tensor, call: str) -> Tensor:
    """The inverse of the Cholesky factor of Omega'A Omega, which must be positive definite."""
    core = (core + core.T) / 2
    factor, failed = torch.linalg.cholesky_ex(core)
    if int(failed):
        values, vectors = torch.linalg.eigh(core)
        v = vectors[:, 0]
        raise OperatorError(
            call,
            expected="a positive semidefinite operator, for method='xnystrace'",
            got=f"a vector v with v'A v / v'v = {float(values[0] / (v @ overlap @ v)):.3g}",
            remedy="Use method='xtrace', or add damping.",
        )
    eye = torch.eye(len(core), dtype=torch.float64)
    return torch.linalg.solve_triangular(factor, eye, upper=False)
