# SPDX-License-Identifier: Apache-2.0
r"""XTrace: every probe helps to build the sketch and, left out of it, tests the rest.

With A Omega = Q R, leaving probe i out shrinks the range of Q by one direction, s_i, the normalised
i-th column of the inverse of R'. The leave-one-out estimates are then quadratic forms in m x m
matrices, without another pass over vectors of length n. The probes lie on a sphere, and each test
is scaled by (n - m + 1) / |tested part|^2, which removes the randomness of its length.

Reference: Epperly, Tropp & Webber 2024, doi:10.1137/23M1548323 (XTrace with normalisation); the
standard error is that of `leave_out`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from hesse.estimators.estimate import Estimate
from hesse.estimators.estimator_run import EstimatorRun
from hesse.estimators.leave_out import are_apart, mean_and_error
from hesse.estimators.probes import on_the_sphere
from hesse.estimators.sketch import Sketch, grow_until_met, grown_gram, no_entries
from hesse.methods import Hyperparameters


@dataclass
class _TraceSketch(Sketch):
    """A sketch and the inner products of its rows."""

    H: Tensor = field(default_factory=no_entries)
    """Q'AQ."""
    W: Tensor = field(default_factory=no_entries)
    """Q'Omega."""
    T: Tensor = field(default_factory=no_entries)
    """Q'A'Omega, which is R for symmetric A."""


@dataclass(frozen=True, repr=False)
class XTrace(Hyperparameters):
    """XTrace: each probe tests the sketch of all others. A method of `trace`.

    Among the most accurate methods where the spectrum decays fast. The standard error allows for
    the dependence of the tests, see `hesse.estimators.leave_out`. Where the rank is below the
    number of probes the estimate is exact to rounding, and the error says no more than that.

    Cost: 2 products and 3 vectors a probe, and 2 vectors more if one probe is added at a time, 4
        for blocks of eight.

    Reference: Epperly, Tropp & Webber 2024, doi:10.1137/23M1548323.

    >>> from hesse.estimators import trace
    >>> round(trace(torch.ones(20, 20), method=XTrace()).value, 4)
    20.0
    """

    name: ClassVar[str] = "xtrace"

    def estimate_trace(self, run: EstimatorRun) -> Estimate:
        """The trace from a sketch that grows."""
        A, space = run.A, run.A.domain
        state = _TraceSketch(space.n, run.generator)

        def add_probes(count: int) -> None:
            probes = on_the_sphere(space, count, run.generator)
            state.grow(A, probes, run.block_size)
            state.multiply(A, run.block_size)
            state.H = grown_gram(space, state.H, state.basis, state.images)
            state.W = grown_gram(space, state.W, state.basis, state.probes)
            if A.symmetric:
                state.T = state.R
            else:
                state.T = grown_gram(space, state.T, state.images, state.probes)
            eps = torch.finfo(A.dtype).eps
            state.value, state.standard_error = _trace_of(state, eps)

        return grow_until_met(run, state, cost=2, held=3, add_probes=add_probes)


def _trace_of(sketch: _TraceSketch, eps: float) -> tuple[float, float]:
    if sketch.size == sketch.n:
        return float(sketch.H.trace()), 0.0
    parts = _parts(sketch)
    h = parts.without_one()
    apart = are_apart(parts.G, eps)
    return mean_and_error(h, torch.where(apart, h[:, None] - parts.without_two(), 0.0))


@dataclass
class _Parts:
    """Quadratic forms in the directions s_i (columns of S) and the residuals of the probes."""

    n: int
    captured: float
    """tr Q'AQ."""
    G: Tensor
    """S'S."""
    K: Tensor
    """S'Q'AQS."""
    B: Tensor
    """S'Q'Omega."""
    D: Tensor
    """S'Q'(A + A') applied to the residuals of the probes."""
    rest: Tensor
    """r'A r for the residuals r of the probes."""
    length: Tensor
    """Their squared norms."""

    def without_one(self) -> Tensor:
        """h_i, (m,)."""
        m, k = len(self.rest), self.K.diagonal()
        c, d = self.B.diagonal(), self.D.diagonal()
        scale = (self.n - m + 1) / (self.length + c**2)
        return self.captured - k + scale * (self.rest + c * d + c**2 * k)

    def without_two(self) -> Tensor:
        """h_{i|j}, (m, m); the diagonal means nothing."""
        m, k = len(self.rest), self.K.diagonal()
        g = self.G - torch.diag(self.G.diagonal())
        cross = self.K + self.K.T
        b, d = self.B.diagonal()[:, None], self.D.diagonal()[:, None]
        ci, cj = (b - g * self.B.T) / (1 - g**2), (self.B.T - g * b) / (1 - g**2)
        lost = (k[:, None] + k - g * cross) / (1 - g**2)
        form = ci * d + cj * self.D.T + ci**2 * k[:, None] + ci * cj * cross + cj**2 * k
        scale = (self.n - m + 2) / (self.length[:, None] + ci * b + cj * self.B.T)
        return self.captured - lost + scale * (self.rest[:, None] + form)


def _parts(sketch: _TraceSketch) -> _Parts:
    R, H, W, T = sketch.R, sketch.H, sketch.W, sketch.T
    eye = torch.eye(sketch.size, dtype=torch.float64)
    S = torch.linalg.solve_triangular(R.T, eye, upper=False)
    S = S / torch.linalg.vector_norm(S, dim=0)
    return _Parts(
        n=sketch.n,
        captured=float(H.trace()),
        G=S.T @ S,
        K=S.T @ H @ S,
        B=S.T @ W,
        D=S.T @ (R - H @ W + T - H.T @ W),
        rest=(W * (H @ W)).sum(dim=0) - (T * W).sum(dim=0),
        length=sketch.n - (W**2).sum(dim=0),  # the probes are on the sphere
    )
