# SPDX-License-Identifier: Apache-2.0
r"""XTrace: every probe both builds the sketch and, left out of it, tests the rest.

With A Omega = Q R, leaving probe i out shrinks the range of Q by one direction, s_i, the normalised
i-th column of the inverse of R'. The leave-one-out estimates are then quadratic forms in m x m
matrices: nothing of length n is touched again. The probes lie on a sphere, and each test is scaled
by (n - m + 1) / |tested part|^2, which takes the randomness of its length away.

Reference: Epperly, Tropp & Webber 2024, doi:10.1137/23M1548323 (XTrace with normalisation); the
standard error is that of `leave_out`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.estimators.estimate import Estimate
from hesse.estimators.leave_out import are_apart, mean_and_error
from hesse.estimators.probes import on_the_sphere, products
from hesse.estimators.sampling import Sampler
from hesse.estimators.sketch import Sketch, empty_sketch, grow_until_met
from hesse.operators.base import LinearOperator


def xtrace(sampler: Sampler) -> Estimate:
    """The trace by XTrace: two products a probe, three vectors."""
    state, A = empty_sketch(sampler), sampler.A

    def advance(more: int) -> None:
        probes = on_the_sphere(A, more, sampler.generator)
        state.grow(A, probes, sampler.block_size, sampler.call)
        images = products(A, state.basis[-more:], sampler.block_size, sampler.call)
        state.images = torch.cat([state.images, images])
        state.products += more
        state.value, state.standard_error = _trace_of(A, state)

    # Probes, basis and images are held; growing one of them holds it twice for a moment.
    return grow_until_met(sampler, state, cost=2, held=4, advance=advance)


def _trace_of(A: LinearOperator, sketch: Sketch) -> tuple[float, float]:
    H = A.gram(sketch.basis, sketch.images)
    if sketch.size == A.shape[1]:
        return float(H.trace()), 0.0
    parts = _parts(A, sketch, H)
    h = parts.without_one()
    apart = are_apart(parts.G, torch.finfo(A.dtype).eps)
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


def _parts(A: LinearOperator, sketch: Sketch, H: Tensor) -> _Parts:
    R, eye = sketch.R, torch.eye(sketch.size, dtype=torch.float64)
    W = A.gram(sketch.basis, sketch.probes)
    T = A.gram(sketch.images, sketch.probes)
    S = torch.linalg.solve_triangular(R.T, eye, upper=False)
    S = S / torch.linalg.vector_norm(S, dim=0)
    squares = torch.tensor([A.inner(row, row) for row in sketch.probes], dtype=torch.float64)
    return _Parts(
        n=A.shape[1],
        captured=float(H.trace()),
        G=S.T @ S,
        K=S.T @ H @ S,
        B=S.T @ W,
        D=S.T @ (R - H @ W + T - H.T @ W),
        rest=(W * (H @ W)).sum(dim=0) - (T * W).sum(dim=0),
        length=squares - (W**2).sum(dim=0),
    )
