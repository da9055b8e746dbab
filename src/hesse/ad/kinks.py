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
        *("abs", "absolute", "__abs__", "sgn", "sign", "copysign", "angle"),
        *("relu", "leaky_relu", "rrelu", "prelu", "elu", "celu", "selu"),
    ]
)
_OF_ZERO = frozenset(
    [
        *("norm", "vector_norm", "matrix_norm", "cdist", "pdist", "pairwise_distance", "hypot"),
        *("std", "sqrt", "dist", "normalize", "cosine_similarity"),
    ]
)
# With the corners, which are the next arguments if those are given.
_CORNERS: dict[str, tuple[float, ...]] = {
    "hardtanh": (-1.0, 1.0),
    "relu6": (0.0, 6.0),
    "hardswish": (-3.0, 3.0),
    "hardsigmoid": (-3.0, 3.0),
    "softshrink": (0.5,),
    "hardshrink": (0.5,),
    "threshold": (),
    "_threshold": (),  # as torch.nn.functional calls it
}
_AT_BOUNDS = frozenset(["clamp", "clip", "clamp_min", "clamp_max"])
_AT_TIES = frozenset(["maximum", "minimum", "fmax", "fmin", "l1_loss"])
_EXTREMA = {
    "max": (torch.amax,),
    "amax": (torch.amax,),
    "min": (torch.amin,),
    "amin": (torch.amin,),
    "aminmax": (torch.amin, torch.amax),
}
_POWERS = frozenset(["pow", "float_power", "__pow__", "__rpow__", "__ipow__"])
_NAMES = _AT_ZERO | _OF_ZERO | _AT_BOUNDS | _AT_TIES | _POWERS | {*_CORNERS, *_EXTREMA}
OF_RESULT = _OF_ZERO | {f"{name}_" for name in _OF_ZERO}
"""Those of which the result tells; call `kink` for the others before they write in place."""
KINKED = _NAMES | {f"{name}_" for name in _NAMES if not name.endswith("_")}
"""What to call `kink` for."""

_BOUNDS = ("min", "max", "min_val", "max_val", "lambd", "threshold")


def kink(name: str, args: Any, kwargs: dict[str, Any], result: Any) -> bool:
    """Whether a call of this operation is exactly at its kink.

    >>> kink("relu", (torch.zeros(1, requires_grad=True),), {}, None)
    True
    """
    name = name if name in _NAMES else name.removesuffix("_")
    if name in _OF_ZERO:
        return _is_differentiated(result) and _meets(result, [0.0])
    if name in _POWERS:
        exponent = args[0] if name == "__rpow__" else kwargs.get("exponent", args[-1])
        return _is_differentiated(exponent) and _meets(exponent, [0.0])
    tensor, *others = args or [kwargs.get("input")]
    if not isinstance(tensor, Tensor):
        return False
    if name in _EXTREMA and not (others and isinstance(others[0], Tensor)):
        return _is_differentiated(tensor) and _is_tied(name, tensor, others, kwargs)
    if name in _AT_ZERO:
        bounds: list[Any] = [0.0]
    elif name in _AT_TIES or name in _EXTREMA:
        bounds = [*others[:1], *(kwargs[key] for key in ("other", "target") if key in kwargs)]
    else:
        bounds = [bound for bound in others if bound is not None and not isinstance(bound, bool)]
        bounds += [kwargs[key] for key in _BOUNDS if kwargs.get(key) is not None]
        bounds = bounds or list(_CORNERS.get(name, ()))
        if name.endswith("shrink"):
            bounds += [-bound for bound in bounds]
    return any(map(_is_differentiated, [tensor, *bounds])) and _meets(tensor, bounds)


def _is_differentiated(argument: Any) -> bool:
    if not isinstance(argument, Tensor):
        return False
    return argument.requires_grad or forward_ad.unpack_dual(argument).tangent is not None


def _meets(tensor: Tensor, bounds: list[Any]) -> bool:
    with torch.no_grad():
        return any(bool((tensor == bound).any()) for bound in bounds)


def _is_tied(name: str, tensor: Tensor, others: list[Any], kwargs: dict[str, Any]) -> bool:
    """Whether several entries are the largest or the smallest one, and torch takes their mean."""
    dim = others[0] if others else kwargs.get("dim")
    if tensor.numel() == 0 or (name in ("max", "min") and dim is not None):  # torch takes one
        return False
    dims = tuple(range(tensor.ndim)) if dim is None or dim == () else dim
    with torch.no_grad():
        ends = [end(tensor, dims, keepdim=True) for end in _EXTREMA[name]]
        return any(bool(((tensor == end).sum(dims) > 1).any()) for end in ends)
