# SPDX-License-Identifier: Apache-2.0
r"""The standard error of a mean of leave-one-out estimates, which are not independent.

XTrace, XNysTrace and XDiag average h_i, which tests with probe i what the other probes built. Given
these, h_i has no bias. Let h_{i|j} be the same without probe j altogether: then h_{i|j} and h_j are
uncorrelated, so are h_{i|j} and h_{j|i}, and for i != j

$$ \operatorname{Cov}(h_i, h_j) = \mathbb{E}\,(h_i - h_{i|j})(h_j - h_{j|i}), $$

which can be observed. With it the variance of the mean is estimated without bias: s^2 / m, the
spread of the h_i as if they were independent, plus that covariance c. The spread alone is too
small, by a factor of up to four, because probes share what the others built; a jackknife is too
large (Efron & Stein 1981, doi:10.1214/aos/1176345462).
"""

from __future__ import annotations

import torch
from torch import Tensor


def mean_and_error(h: Tensor, change: Tensor) -> tuple[float, float]:
    """Mean and standard error of h, (m,), from change[i, j] = h_i - h_{i|j}, (m, m).

    A covariance that comes out negative does so by chance, where the eigenvalues fall so fast that
    a few probes decide. As zero it would make the error too small: twice the spread stands in
    for it, which is what it often is there.
    """
    m = len(h)
    off = change - torch.diag(change.diagonal())
    covariance = float((off * off.T).sum()) / (m * (m - 1))
    spread = float(h.var()) / m
    variance = spread + (covariance if covariance >= 0.0 else 2 * spread)
    return float(h.mean()), variance**0.5


def are_apart(G: Tensor, eps: float) -> Tensor:
    """Which pairs of directions, of length 1 and with inner products G, are not the same line.

    Where two are, the other probes alone span all of A that there is: h_i is exact, so that its
    covariance with h_j is zero, and h_{i|j} is rounding over rounding.
    """
    return _SAME * eps < 1 - G**2


_SAME = 100
