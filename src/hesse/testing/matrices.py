# SPDX-License-Identifier: Apache-2.0
"""Matrices whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def symmetric_matrix(
    values: Tensor | Sequence[float], seed: int = 0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """A symmetric matrix with these eigenvalues and random eigenvectors, Q diag(values) Q'.

    >>> torch.linalg.eigvalsh(symmetric_matrix([3.0, 1.0, 2.0])).round(decimals=4)
    tensor([1., 2., 3.], dtype=torch.float64)
    """
    diagonal = torch.as_tensor(values, dtype=torch.float64)
    n, generator = len(diagonal), torch.Generator().manual_seed(seed)
    Q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    M = Q @ torch.diag(diagonal) @ Q.T
    return ((M + M.T) / 2).to(dtype)
