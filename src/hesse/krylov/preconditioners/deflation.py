# SPDX-License-Identifier: Apache-2.0
r"""The preconditioner that a few eigenpairs make: known directions are scaled to one level.

An approximation U diag(values) U' of A on the span of U, and nothing known outside, give

$$ M = \ell\, U \operatorname{diag}(1 / \text{values})\, U^T + (I - U U^T) . $$

With the level l a typical eigenvalue of the rest, the spectrum of M A lies about l. The factor that
makes it an approximation of the inverse, 1 / l, is left out: no Krylov method sees it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.operators.algebra import LinearOperator
from hesse.operators.low_rank import LowRankOperator, LowRankPlusDiagonal
from hesse.vectors.space import Space


def deflation(space: Space, U: Tensor, values: Tensor, level: float) -> LinearOperator:
    """M for orthonormal columns U, whose values are at least `level` > 0.

    >>> M = deflation(Space.flat(3), torch.eye(3)[:, :1], torch.tensor([4.0]), level=1.0)
    >>> M @ torch.ones(3)
    tensor([0.2500, 1.0000, 1.0000])
    """
    # Below this ratio I - U U' is all rounding, and M would not be definite.
    ratios = (level / values).clamp(min=32 * torch.finfo(U.dtype).eps, max=1.0)
    ones = torch.ones(space.size, dtype=U.dtype, device=U.device)
    return LowRankPlusDiagonal(LowRankOperator(space, U, ratios.to(U) - 1.0), ones)
