# SPDX-License-Identifier: Apache-2.0
"""What torch knows of an operation: does it write, is its result a view, has it an in-place form?

The only file that reads the attributes of `OpOverload` (`_schema`, `_op`, `_overloadname`), which
are private to torch; tried on torch 2.13 and 2.15. Where torch has no schemas, nothing is traced.
A Python function that a pass has put into a graph writes to nothing and makes no view.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from hesse.tracing.graph import UntraceableError

_aten = torch.ops.aten

# They share the memory of their argument, and their schemas do not say so.
_UNMARKED_VIEWS = frozenset(
    [
        *(_aten._unsafe_view.default, _aten.unsafe_split.Tensor, _aten.unsafe_chunk.default),
        _aten.unsafe_split_with_sizes.default,
    ]
)

# Views whose entries are not those of their memory: conjugated or negated lazily.
LAZY_VIEWS = frozenset([_aten._conj.default, _aten._neg_view.default])

# X + A B into the memory of X, and entries added to X in place. They are called with `out=`, since
# torch's FLOP counter does not know `addmm_`.
_ACCUMULATING = {
    _aten.index_add.default: _aten.index_add.out,
    _aten.addmm.default: _aten.addmm.out,
    _aten.baddbmm.default: _aten.baddbmm.out,
}


# Forward-mode AD asks these of a tensor and its tangent.
_COMPARISONS = frozenset(
    getattr(_aten, name).default
    for name in ("is_same_size", "_has_same_storage_numel")
    if hasattr(_aten, name)
)


def is_operation(function: Any) -> bool:
    """Whether it is an operation on tensors, not a higher-order one that takes functions."""
    return isinstance(function, type(_aten.mm.default))


def is_random(function: Any) -> bool:
    """Whether it draws from a generator of random numbers."""
    return torch.Tag.nondeterministic_seeded in function.tags


def is_profiling(function: Any) -> bool:
    """Whether an operation marks a place for the profiler, such as `record_function`."""
    return getattr(function, "namespace", "") == "profiler"


def compares_layouts(function: Any) -> bool:
    """Whether it compares the shapes or the memory sizes of two tensors, and reads no entries."""
    return function in _COMPARISONS


def has_dynamic_shape(function: Any) -> bool:
    """Whether the shape of its result depends on the entries of its arguments."""
    return torch.Tag.dynamic_output_shape in function.tags


def is_pointwise(function: Any) -> bool:
    """Whether each entry of its result depends on the same entry of its arguments alone."""
    return torch.Tag.pointwise in function.tags


def writes(function: Any) -> bool:
    """Whether it changes one of its arguments."""
    schema = _schema(function)
    return schema is not None and schema.is_mutable


def _schema(function: Any) -> Any:
    """The signature of an operation, with aliases; None for a Python function."""
    if not is_operation(function):
        return None
    schema = getattr(function, "_schema", None)
    if schema is None:
        raise UntraceableError("this version of torch does not tell what its operations write to")
    return schema


@cache
def is_view(function: Any) -> bool:
    """Whether its result shares the memory of its first argument."""
    if function in _UNMARKED_VIEWS:
        return True
    schema = _schema(function)
    if schema is None or not schema.returns or not schema.arguments:
        return False
    alias = schema.arguments[0].alias_info
    return alias is not None and not alias.is_write


@cache
def in_place_form(function: Any) -> tuple[Any, str | None] | None:
    """The operation that writes its result over the first argument, and by which keyword.

    Only an operation that reads nothing of that argument but the entry that it writes has one.
    """
    if function in _ACCUMULATING:
        return _ACCUMULATING[function], "out"
    if not is_pointwise(function):
        return None
    packet, overload = function.overloadpacket, getattr(function, "_overloadname", "")
    own = getattr(_aten, f"{packet.__name__}_", None)
    if own is not None and overload in own.overloads():
        return getattr(own, overload), None
    if packet.__name__.endswith("_backward") and "grad_input" in packet.overloads():
        return packet.grad_input, "grad_input"
    return None


def direct_call(function: Any) -> Callable[..., Any]:
    """The binding behind an operation, which costs less to call; the operation if there is none."""
    return getattr(function, "_op", function)
