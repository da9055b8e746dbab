# SPDX-License-Identifier: Apache-2.0
r"""XDiag: leave-one-out estimates of the diagonal.

With A Z = Q R for random signs Z, and Q_i the range of Q without what probe i brings,

$$ h_i = \operatorname{diag}(Q_i Q_i^T A) + z_i \odot (I - Q_i Q_i^T) A z_i,
   \qquad Q_i Q_i^T = Q (I - s_i s_i^T) Q^T $$

where s_i is the normalised i-th column of the inverse of R'. With u_i = Q s_i, v_i = A'Q s_i and
d_i = s_i'R e_i that is diag(Q Q'A) - u_i v_i + d_i z_i u_i, entry by entry.

Reference: Epperly, Tropp & Webber 2024, doi:10.1137/23M1548323 (XDiag); the standard error is that
of `leave_out`, for every entry.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.estimators.estimate import Estimate
from hesse.estimators.leave_out import are_apart
from hesse.estimators.probes import products, signs
from hesse.estimators.sampling import Sampler
from hesse.estimators.sketch import Sketch, empty_sketch, grow_until_met

_CHUNK = 1 << 16  # numbers at a time: what is computed of them then stays in the cache


def xdiag(sampler: Sampler) -> Estimate:
    """The diagonal by XDiag: two products a probe, A z and A'q; nine vectors."""
    state, A = empty_sketch(sampler), sampler.A

    def advance(more: int) -> None:
        state.grow(A, signs(A, more, sampler.generator), sampler.block_size, sampler.call)
        images = products(A.T, state.basis[-more:], sampler.block_size, sampler.call)
        state.images = torch.cat([state.images, images])
        state.products += more
        state.value, state.standard_error = _diagonal_of(state)

    # Probes, basis, images, u, v, and four of their size while the errors are computed.
    return grow_until_met(sampler, state, cost=2, held=9, advance=advance)


def _diagonal_of(sketch: Sketch) -> tuple[Tensor, Tensor]:
    m, like = sketch.size, sketch.basis
    eye = torch.eye(m, dtype=torch.float64)
    S = torch.linalg.solve_triangular(sketch.R.T, eye, upper=False)
    lengths = torch.linalg.vector_norm(S, dim=0)
    S = S / lengths
    U, V = S.T.to(like) @ sketch.basis, S.T.to(like) @ sketch.images
    captured = (sketch.basis * sketch.images).sum(dim=0)
    if m == sketch.probes.shape[1]:
        return captured, torch.zeros_like(captured)
    N = V - sketch.probes / lengths.to(like)[:, None]
    h = -U * N  # beside what is captured
    variance = h.var(dim=0) / m + _covariance(U, V, N, S.T @ S).clamp(min=0.0)
    return captured + h.mean(dim=0), variance.sqrt()


def _covariance(U: Tensor, V: Tensor, N: Tensor, G: Tensor) -> Tensor:
    """The mean over i != j of (h_i - h_{i|j}) (h_j - h_{j|i}), entry by entry.

    h_i - h_{i|j} = (u_j - g u_i) (v_j - g n_i) / (1 - g^2) with g = s_i's_j.
    """
    m, off = len(U), 1 - torch.eye(len(U), dtype=torch.float64)
    g = (G * off).to(U.device)
    apart = are_apart(g, torch.finfo(U.dtype).eps)
    w = torch.where(apart, off.to(U.device) / (1 - g**2) ** 2, 0.0)
    pieces = zip(*(block.split(max(1, _CHUNK // m), dim=1) for block in (U, V, N)), strict=True)
    sums = [_sum_of_pairs(u.double(), v.double(), n.double(), g, w) for u, v, n in pieces]
    return (torch.cat(sums) / (m * (m - 1))).to(U)


def _sum_of_pairs(u: Tensor, v: Tensor, n: Tensor, g: Tensor, w: Tensor) -> Tensor:
    """sum_ij w (u_j - g u_i) (v_j - g n_i) (u_i - g u_j) (v_i - g n_j), multiplied out.

    Of two terms that differ by i and j changing places one is taken twice. In float64, since the
    terms all but cancel where g is close to 1.
    """
    uu, uv, un, vn, both = u * u, u * v, u * n, v * n, w * (1 + g**2)
    mixed = uv * (both @ uv) + un * (g**2 * both @ un) - 2 * u * vn * (g * both @ u)
    shared = (w * g**2).sum(dim=1)[:, None] * vn + (w * g**2) @ vn
    squares = uu * (shared - v * (w * g @ v) - n * (w * g**3 @ n))
    return (mixed + 2 * squares).sum(dim=0)
