# SPDX-License-Identifier: Apache-2.0
r"""The standard error of a mean of leave-one-out estimates, which are not independent.

XTrace, XNysTrace and XDiag average estimates h_i, in which probe i tests the sketch of the other
probes. Given these, h_i has no bias. Let h_{i|j} be the same without probe j: then h_{i|j} and h_j
are uncorrelated, so are h_{i|j} and h_{j|i}, and for i != j

$$ \operatorname{Cov}(h_i, h_j) = \mathbb{E}\,(h_i - h_{i|j})(h_j - h_{j|i}), $$

which can be observed. With it the variance of the mean is estimated without bias: s^2 / m, as if
the h_i were independent, plus that covariance. The first alone is too small, by a factor of up to
four, because the sketches have probes in common; a jackknife is too large (Efron & Stein 1981,
doi:10.1214/aos/1176345462).
"""

from __future__ import annotations

import torch
from torch import Tensor

_PARALLEL = 100  # roundings


def mean_and_error(h: Tensor, change: Tensor) -> tuple[float, float]:
    """Mean and standard error of h, (m,), from change[i, j] = h_i - h_{i|j}, (m, m).

    The estimated covariance is negative only by chance, where the eigenvalues decay so fast that
    a few probes decide. Zero in its place would make the error too small; it is replaced by twice
    the spread, about its size in such cases.
    """
    m = len(h)
    off = change - torch.diag(change.diagonal())
    covariance = float((off * off.T).sum()) / (m * (m - 1))
    spread = float(h.var()) / m
    variance = spread + (covariance if covariance >= 0.0 else 2 * spread)
    return float(h.mean()), variance**0.5


def are_apart(G: Tensor, eps: float) -> Tensor:
    """Which pairs of unit vectors, with inner products G, are not parallel.

    Where two are parallel the other probes alone span the range of A: h_i is exact, its covariance
    with h_j is zero, and h_{i|j} would be rounding divided by rounding.
    """
    return _PARALLEL * eps < 1 - G**2
