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

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hesse.estimators.estimate import Estimate
from hesse.estimators.estimator_run import EstimatorRun
from hesse.estimators.leave_out import are_apart
from hesse.estimators.probes import signs
from hesse.estimators.sketch import Sketch, grow_until_met
from hesse.methods import Hyperparameters
from hesse.vectors.rows import columns

_WIDTH = 1 << 9  # entries at a time, whose intermediate results stay in the cache


@dataclass(frozen=True, repr=False)
class XDiag(Hyperparameters):
    """XDiag: each probe tests the sketch of all others. A method of `diagonal`.

    The most accurate method where the singular values decay fast.

    Cost: a product with A, one with A', and 3 vectors a probe, with four to six vectors more in
        all.

    Raises:
        HesseError: A is not symmetric and has no adjoint.

    Reference: Epperly, Tropp & Webber 2024, doi:10.1137/23M1548323.

    >>> from hesse.estimators import diagonal
    >>> diagonal(torch.ones(20, 20), method=XDiag()).value[:3]
    tensor([1.0000, 1.0000, 1.0000])
    """

    name: ClassVar[str] = "xdiag"

    def estimate_diagonal(self, run: EstimatorRun) -> Estimate:
        """The diagonal from a sketch that grows."""
        A, space = run.A, run.A.domain
        state = Sketch(space.n, run.generator)

        def add_probes(count: int) -> None:
            state.grow(A, signs(space, count, run.generator), run.block_size)
            state.multiply(A.T, run.block_size)
            state.value, state.standard_error = _diagonal_of(state)

        return grow_until_met(run, state, cost=2, held=3, add_probes=add_probes)


def _diagonal_of(sketch: Sketch) -> tuple[Tensor, Tensor]:
    m, home = sketch.size, sketch.basis[0]
    rows = (sketch.basis, sketch.images, sketch.probes)
    pieces = zip(*(columns(blocks, _WIDTH) for blocks in rows), strict=True)
    if m == sketch.n:
        value = torch.cat([(Q * images).sum(dim=0) for Q, images, _ in pieces])
        return value, torch.zeros_like(value)
    S = torch.linalg.solve_triangular(sketch.R.T, torch.eye(m).double(), upper=False)
    lengths = torch.linalg.vector_norm(S, dim=0)
    g, w = (x.to(home.device) for x in _weights(S / lengths, torch.finfo(home.dtype).eps))
    S, d = (S / lengths).to(home), 1 / lengths.to(home.device)
    found = [_entries(Q, images, Z, S, d, g, w) for Q, images, Z in pieces]
    value, error = map(torch.cat, zip(*found, strict=True))
    return value, error


def _weights(S: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """g = s_i's_j for i != j, and 1 / (1 - g^2)^2, which is 0 where s_i and s_j are one line."""
    off = 1 - torch.eye(len(S), dtype=torch.float64)
    g = S.T @ S * off
    return g, torch.where(are_apart(g, eps), off / (1 - g**2) ** 2, 0.0)


def _entries(
    Q: Tensor, images: Tensor, Z: Tensor, S: Tensor, d: Tensor, g: Tensor, w: Tensor
) -> tuple[Tensor, Tensor]:
    """The mean of the h_i and its standard error, for the entries that these columns belong to.

    The covariance is the mean over i != j of (h_i - h_{i|j}) (h_j - h_{j|i}), where
    h_i - h_{i|j} = (u_j - g u_i) (v_j - g n_i) / (1 - g^2) with g = s_i's_j.
    """
    m = len(Q)
    U, V = (S.T @ Q).double(), (S.T @ images).double()
    N = V - d[:, None] * Z
    h = -U * N  # beside what is captured
    covariance = _sum_of_pairs(U, V, N, g, w) / (m * (m - 1))
    captured = (Q * images).sum(dim=0, dtype=torch.float64)
    mean = h.mean(dim=0)
    spread = (h - mean).square().sum(dim=0) / (m - 1)  # torch's var warns of no entries
    variance = spread / m + covariance.clamp(min=0.0)
    return (captured + mean).to(Q), variance.sqrt().to(Q)


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
