# SPDX-License-Identifier: Apache-2.0
"""Surfaces of energy with several minima and the saddle points between them."""

from __future__ import annotations

import torch
from torch import Tensor

_A, _a, _b, _c, _X, _Y = (
    torch.tensor(values, dtype=torch.float64)
    for values in (
        (-200, -100, -170, 15),
        (-1, -1, -6.5, 0.7),
        (0, 0, 11, 0.6),
        (-10, -10, -6.5, 0.7),
        (1, 0, -0.5, -1),
        (0, 0.5, 1.5, 1),
    )
)


def mueller_brown(p: Tensor) -> Tensor:
    """The surface of Mueller and Brown 1979, doi:10.1007/BF00547608, at a point (2,).

    It has three minima and two saddle points.

    >>> mueller_brown(torch.tensor([-0.558, 1.442], dtype=torch.float64)).round(decimals=1)
    tensor(-146.7000, dtype=torch.float64)
    """
    x, y = p[0] - _X, p[1] - _Y
    return (_A * torch.exp(_a * x**2 + _b * x * y + _c * y**2)).sum()
