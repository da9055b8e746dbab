# SPDX-License-Identifier: Apache-2.0
"""Transforms of `torch.func` inside a function that is traced.

Forward mode inside another derivative ends the process with a segmentation fault while operations
are observed (torch 2.13 and 2.15: `jvp` of `jvp`, `jvp` of `grad`, `grad` of `jvp`). Such a
function is not traced.

The only file that reads functorch's stack, which is private to torch. A torch without it traces no
function that uses forward mode.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from hesse.tracing.graph import UntraceableError


class NoNestedForwardMode(TorchFunctionMode):
    """Within it, forward mode inside another derivative, or around one, raises UntraceableError."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`."""
        if _nests_forward_mode(func):
            raise UntraceableError("forward mode nested with another derivative (torch.func)")
        return func(*args, **(kwargs or {}))


def _nests_forward_mode(func: Any) -> bool:
    functorch: Any = getattr(torch._C, "_functorch", None)
    read = getattr(functorch, "get_interpreter_stack", None)
    if read is None:
        return getattr(func, "__name__", "") == "_make_dual"
    transforms = [interpreter.key() for interpreter in read() or []]
    derivatives = [t for t in transforms if t in (functorch.TransformType.Grad, _jvp(functorch))]
    return len(derivatives) > 1 and _jvp(functorch) in derivatives


def _jvp(functorch: Any) -> Any:
    return functorch.TransformType.Jvp
