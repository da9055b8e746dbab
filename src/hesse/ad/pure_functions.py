# SPDX-License-Identifier: Apache-2.0
"""What computes from its arguments and nothing else: functions of torch and Python, by name.

Random draws of torch are among them: a trace refuses these by itself. So are functions that give a
number of Python for a tensor, which a trace notes as guards, but not those whose numbers it does
not see.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import get_overridable_functions

_CREATE = ["tensor", "as_tensor", "zeros", "ones", "full", "arange", "linspace", "eye"]
_PROPERTIES = ["shape", "dtype", "device", "ndim", "T", "mT", "H", "mH", "real", "imag"]

# What reaches the memory of a tensor past the trace, or what is attached to a tensor.
_UNSEEN = frozenset(
    [
        *("data", "numpy", "tolist", "data_ptr", "const_data_ptr", "storage", "untyped_storage"),
        *("storage_offset", "storage_type", "is_set_to", "set_", "apply_", "map_", "map2_"),
        *("share_memory_", "is_shared", "pin_memory", "is_pinned", "record_stream", "backward"),
        *("grad", "is_leaf", "requires_grad_", "retain_grad", "register_hook"),
        "register_post_accumulate_grad_hook",
    ]
)

_BUILTINS = [
    *(abs, all, any, bool, complex, dict, divmod, enumerate, float, int, isinstance, len, list),
    *(map, max, min, pow, range, reversed, round, slice, sorted, sum, tuple, zip),
]
_OF_CONTAINERS = ["append", "extend", "items", "keys", "values"]


@cache
def attributes() -> frozenset[str]:
    """Attributes of tensors, and of what a function makes itself, that say nothing else."""
    methods = {str(getattr(f, "__name__", "_")) for f in get_overridable_functions()[Tensor]}
    public = frozenset(name for name in methods - _UNSEEN if not name.startswith("_"))
    return public.union(_PROPERTIES, _OF_CONTAINERS)


@cache
def _known() -> frozenset[Any]:
    namespaces = [torch, torch.functional, torch.nn.functional, torch.linalg, torch.special]
    functions = get_overridable_functions()
    of_torch = [f for space in namespaces for f in functions.get(space, [])]
    of_math = [f for name, f in vars(math).items() if callable(f) and not name.startswith("_")]
    create = [getattr(torch, name) for name in _CREATE]
    return frozenset([*of_torch, *of_math, *create, *_BUILTINS, Tensor])


def is_pure(function: Any) -> bool:
    """Whether it is one of these.

    >>> [is_pure(f) for f in (torch.sin, torch.nn.functional.pad, math.sqrt, len, print)]
    [True, True, True, True, False]
    """
    try:
        return function in _known()
    except TypeError:  # what has no hash is no such function
        return False
