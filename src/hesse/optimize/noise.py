# SPDX-License-Identifier: Apache-2.0
"""The rounding error of f, measured by differences of values that lie close together.

f may be a small difference of large terms: its rounding error is then far above eps |f|. Where no
step finds a lower value although the gradient promises one, the error is measured.

Reference: Moré & Wild 2011, doi:10.1137/100786125.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from hesse.optimize.point import Objective, Point

# Values on a line, and the order of their differences, which remove what is smooth.
_VALUES, _ORDER = 7, 4


def measured_noise(objective: Objective, point: Point) -> float:
    """The standard deviation of the rounding error of f near a point; 0 if that is not known.

    The root of the mean square of the k-th differences, times k! / sqrt((2 k)!). Seven values.
    """
    space, eps = point.space, torch.finfo(point.x.dtype).eps
    direction = space.gaussian(torch.Generator().manual_seed(0))
    step = eps**0.5 * max(1.0, space.norm(point.x)) / space.norm(direction)
    values = [point.value]
    values += [objective.point(point.x + k * step * direction).value for k in range(1, _VALUES)]
    if not all(map(math.isfinite, values)):
        return 0.0
    for _ in range(_ORDER):
        values = [b - a for a, b in pairwise(values)]
    mean = sum(value * value for value in values) / len(values)
    return math.factorial(_ORDER) * math.sqrt(mean / math.factorial(2 * _ORDER))
