# SPDX-License-Identifier: Apache-2.0
"""Operations that are evaluated exactly at a kink.

f may be smooth where an operation in it is not: |x|^2 spelt as `x.abs() ** 2`, or a distance that
is squared. Automatic differentiation then gives a finite number that is wrong: torch takes the
derivative of |x| at zero for the constant 0. Which operations met their kink is noted, so that the
product can be compared with differences. A power is among them: where its exponent is zero, torch
takes the derivative in the base for the constant 0, whatever the exponent does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_AT_ZERO = frozenset(
    [
        *("abs", "absolute", "__abs__", "abs_", "sgn", "sign", "sinc", "copysign", "angle"),
        *(
            "relu",
            "relu_",
            "leaky_relu",
            "leaky_relu_",
            "rrelu",
            "prelu",
            "threshold",
            "softshrink",
        ),
        *("clamp_min", "clamp_max"),
    ]
)
_OF_ZERO = frozenset(
    [
        *("norm", "vector_norm", "matrix_norm", "cdist", "pdist", "pairwise_distance", "hypot"),
        *("std", "sqrt", "sqrt_", "dist", "normalize", "cosine_similarity"),
    ]
)
_AT_TIES = frozenset(
    ["maximum", "minimum", "fmax", "fmin", "max", "min", "clamp", "clamp_", "clip"]
)
_POWERS = frozenset(["pow", "pow_", "float_power", "float_power_", "__pow__", "__rpow__"])
KINKED = _AT_ZERO | _OF_ZERO | _AT_TIES | _POWERS
"""What to call `kink` for."""


def kink(name: str, args: Any, kwargs: dict[str, Any], result: Any) -> bool:
    """Whether a call of this operation was exactly at its kink."""
    if name in _AT_ZERO:
        return bool(args) and _is_differentiated(args[0]) and _has_zero(args[0])
    if name in _OF_ZERO:
        return _is_differentiated(result) and _has_zero(result)
    if name in _POWERS:
        exponent = args[0] if name == "__rpow__" else kwargs.get("exponent", args[-1])
        return _is_differentiated(exponent) and _has_zero(exponent)
    return name in _AT_TIES and _is_tied(args, kwargs)


def _is_differentiated(argument: Any) -> bool:
    if not isinstance(argument, Tensor):
        return False
    return argument.requires_grad or forward_ad.unpack_dual(argument).tangent is not None


def _has_zero(tensor: Tensor) -> bool:
    with torch.no_grad():
        return int(torch.count_nonzero(tensor.detach())) < tensor.numel()


def _is_tied(args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a tensor meets the other one, or a bound."""
    tensor, *others = args
    others += [kwargs[name] for name in ("other", "min", "max") if kwargs.get(name) is not None]
    bounds = [bound for bound in others if isinstance(bound, Tensor | float)]  # not a dimension
    if not any(map(_is_differentiated, [tensor, *bounds])):
        return False
    with torch.no_grad():
        return any(bool((tensor == bound).any()) for bound in bounds)
