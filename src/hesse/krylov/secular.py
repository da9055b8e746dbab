# SPDX-License-Identifier: Apache-2.0
r"""The minimum of a quadratic model within a ball, or with a cubic term, in its eigenbasis.

$$ \min_y\; c^T y + \tfrac12 y^T \Theta y \quad\text{with } \lVert y \rVert \le \Delta, \qquad
   \min_y\; c^T y + \tfrac12 y^T \Theta y + \tfrac{\sigma}{3} \lVert y \rVert^3 $$

Both are global minima: y = -(Theta + lambda)^-1 c with Theta + lambda positive semi-definite, where
|y| = Delta, or lambda = sigma |y|. In the hard case c has nothing along the lowest eigenvector, and
the step gets a component along it (Moré & Sorensen 1983, doi:10.1137/0904038; Cartis, Gould & Toint
2011, doi:10.1007/s10107-009-0286-5).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

_MOST = 200  # iterations of Newton's method and bisection
_EPS, _TINY = float(np.finfo(np.float64).eps), 1e-290


class Minimum(NamedTuple):
    """Where a model has its minimum, and the shift lambda that makes it one."""

    y: Any
    shift: float


def within_ball(values: Any, slope: Any, radius: float) -> Minimum:
    """The minimum of c'y + y'Theta y / 2 with |y| <= radius.

    Args:
        values: the diagonal of Theta, ascending: a float64 array.
        slope: c.
        radius: Delta > 0.

    >>> within_ball(np.array([1.0, 2.0]), np.array([-1.0, -2.0]), 9.0)
    Minimum(y=array([1., 1.]), shift=0.0)
    >>> within_ball(np.array([-1.0, 1.0]), np.array([0.0, -2.0]), 2.0)  # the hard case
    Minimum(y=array([1.73205081, 1.        ]), shift=1.0)
    """
    if values[0] > 0.0:
        with np.errstate(over="ignore"):
            y = -slope / values
        if _norm(y) <= radius:
            return Minimum(y, 0.0)
    first = max(float(values[0]), 0.0)
    bounds = tuple(max(size / radius - first, 0.0) for size in _sizes(slope))
    return _shifted(values, slope, lambda _: (radius, 0.0), bounds)


def with_cubic(values: Any, slope: Any, sigma: float) -> Minimum:
    """The minimum of c'y + y'Theta y / 2 + sigma |y|^3 / 3, for sigma > 0.

    >>> with_cubic(np.array([1.0]), np.array([-2.0]), 1.0)
    Minimum(y=array([1.]), shift=1.0)
    """
    a = abs(float(values[0]))

    def excess(size: float) -> float:
        """The u > 0 with u (u + a) = sigma size."""
        product = sigma * size
        return 2.0 * product / max(a + math.sqrt(a * a + 4.0 * product), _TINY)

    bounds = tuple(excess(size) for size in _sizes(slope))
    return _shifted(values, slope, lambda shift: (shift / sigma, 1.0 / sigma), bounds)


def _sizes(slope: Any) -> tuple[float, float]:
    """Of c along the lowest eigenvector, and altogether."""
    return abs(float(slope[0])), _norm(slope)


def _shifted(
    values: Any,
    slope: Any,
    length: Callable[[float], tuple[float, float]],
    bounds: tuple[float, ...],
) -> Minimum:
    """y(lambda) with |y| = length(lambda), by Newton's method on 1/|y| - 1/length.

    The unknown is u = lambda - max(-Theta_1, 0), between the `bounds`: no cancellation touches it
    where it is small.
    """
    offset = max(-float(values[0]), 0.0)
    gaps = values + offset
    hard = _hard_case(gaps, slope, length(offset)[0]) if gaps[0] <= 0.0 else None
    if hard is not None:
        return Minimum(hard, offset)
    low, high = (max(bound, _TINY) for bound in bounds)
    u = low
    for iteration in range(_MOST):
        y = -slope / (gaps + u)
        size, (wanted, growth) = _norm(y), length(u + offset)
        low, high = (max(low, u), high) if size > wanted else (low, min(high, u))
        last = u
        if size > 0.0 and wanted > 0.0:
            derivative = (
                float(((y / size) ** 2 / (gaps + u)).sum()) / size + growth / wanted / wanted
            )
            u += (1.0 / wanted - 1.0 / size) / derivative
        is_slow = iteration % 4 == 3 and high > 4.0 * low  # 1/length may be far from linear
        if is_slow or not low < u < high:
            u = math.sqrt(low) * math.sqrt(high)
        if abs(u - last) <= 2.0 * _EPS * last or high - low <= 2.0 * _EPS * high:
            break
    return Minimum(-slope / (gaps + u), u + offset)


def _hard_case(gaps: Any, slope: Any, wanted: float) -> Any | None:
    """The minimum where c has nothing along the lowest eigenvectors, and y is too short."""
    is_lowest = gaps <= 0.0
    if bool(slope[is_lowest].any()):
        return None
    y = np.zeros_like(slope)
    y[~is_lowest] = -slope[~is_lowest] / gaps[~is_lowest]
    short = wanted**2 - float(y @ y)
    if short < 0.0:
        return None
    y[0] = math.sqrt(short)
    return y


def _norm(y: Any) -> float:
    """|y|, where the squares may overflow."""
    largest = float(np.abs(y).max())
    if not 0.0 < largest < math.inf:
        return largest
    return largest * float(np.linalg.norm(y / largest))
