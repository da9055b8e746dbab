# SPDX-License-Identifier: Apache-2.0
"""Logarithms of sums of exponentials of all entries up to each, composed of those of two.

torch's backward pass takes logarithms of the slopes that come in, positive and negative ones apart:
where one is zero, or where entries are hundreds apart, its second derivative is wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def logcumsumexp(input: Tensor, dim: int) -> Tensor:
    """`torch.logcumsumexp`, in log2(n) steps that double how many entries a sum has."""
    if input.ndim == 0 or input.dtype.is_complex:
        return torch.logcumsumexp(input, dim)
    n, step, sums = input.shape[dim], 1, input
    while step < n:
        earlier, later = sums.narrow(dim, 0, n - step), sums.narrow(dim, step, n - step)
        sums = torch.cat([sums.narrow(dim, 0, step), _log_sum(earlier, later)], dim)
        step *= 2
    return sums


def _log_sum(a: Tensor, b: Tensor) -> Tensor:
    """log(exp a + exp b), also of two entries that are minus infinity."""
    low = torch.finfo(a.dtype).min / 4
    empty = (a == -torch.inf) & (b == -torch.inf)
    a, b = a.clamp(min=low), b.clamp(min=low)
    larger = torch.where(a > b, a - logsigmoid(a - b), b - logsigmoid(b - a))
    return torch.where(empty, -torch.inf, larger)
