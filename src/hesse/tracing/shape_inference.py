# SPDX-License-Identifier: Apache-2.0
"""Shape inference: the meta of a result, from the metas of the arguments.

torch infers it by running the operation on the device "meta". For many operations that is a Python
function, whose first call imports a compiler for a second. So the few operations that passes add to
a graph have rules here, and only the others are left to torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hesse.tracing.graph import TensorMeta, substitute

_aten = torch.ops.aten


def infer_meta(function: Callable, args: Sequence[Any], metas: dict[int, TensorMeta]) -> TensorMeta:
    """The meta of function(*args), where the values of `args` have these metas."""
    rule = _RULES.get(function)
    made = None if rule is None else rule(*substitute(args, metas.__getitem__))
    return _by_torch(function, args, metas) if made is None else replace(made, offset=0)


def _by_torch(function: Callable, args: Sequence[Any], metas: dict[int, TensorMeta]) -> TensorMeta:
    devices = []

    def on_meta_device(number: int) -> Tensor:
        meta = metas[number]
        devices.append(meta.device)
        return torch.empty_strided(meta.shape, meta.stride, dtype=meta.dtype, device="meta")

    made = function(*substitute(args, on_meta_device))
    return TensorMeta(tuple(made.shape), made.stride(), 0, made.dtype, devices[0])


def _select(a: TensorMeta, dim: int, _: int) -> TensorMeta:
    return replace(a, shape=_without(a.shape, dim), stride=_without(a.stride, dim))


def _unsqueeze(a: TensorMeta, dim: int) -> TensorMeta:
    place = dim % (len(a.shape) + 1)
    step = a.shape[place] * a.stride[place] if place < len(a.shape) else 1
    shape, stride = list(a.shape), list(a.stride)
    shape.insert(place, 1)
    stride.insert(place, step)
    return replace(a, shape=tuple(shape), stride=tuple(stride))


def _t(a: TensorMeta) -> TensorMeta:
    return replace(a, shape=a.shape[::-1], stride=a.stride[::-1])


def _slice(a: TensorMeta, dim: int, first: int, last: int) -> TensorMeta:
    shape = list(a.shape)
    size = shape[dim]
    first, last, _ = slice(first, last).indices(size)
    shape[dim] = max(0, last - first)
    return replace(a, shape=tuple(shape))


def _mm(a: TensorMeta, b: TensorMeta) -> TensorMeta:
    return _contiguous(a, (a.shape[0], b.shape[1]))


def _cat(parts: Sequence[TensorMeta], dim: int) -> TensorMeta | None:
    first = parts[0]
    if len(first.shape) > 3 or any(part.dtype != first.dtype for part in parts):
        return None  # the result may be channels-last
    if not all(_has_plain_strides(part) and len(part.shape) == len(first.shape) for part in parts):
        return None
    shape = list(first.shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    return _contiguous(first, tuple(shape))


def _is_packed(a: TensorMeta) -> bool:
    """Whether its entries fill their memory without gaps, in whatever order of dimensions."""
    reach = 1
    for stride, size in sorted(zip(a.stride, a.shape, strict=True)):
        if stride != reach or size == 1:  # the stride of a dimension of 1 entry is anything
            return False
        reach *= size
    return True


def _has_plain_strides(a: TensorMeta) -> bool:
    return a.stride == _contiguous(a, a.shape).stride


def _add(a: TensorMeta, b: TensorMeta) -> TensorMeta | None:
    return a if a.same_layout(b) and _is_packed(a) else None


def _new_zeros(a: TensorMeta, shape: Sequence[int]) -> TensorMeta:
    return _contiguous(a, tuple(shape))


def _contiguous(like: TensorMeta, shape: tuple[int, ...]) -> TensorMeta:
    stride, reach = [], 1
    for size in reversed(shape):
        stride.append(reach)
        reach *= max(size, 1)
    return replace(like, shape=shape, stride=tuple(reversed(stride)))


def _without(entries: tuple[int, ...], dim: int) -> tuple[int, ...]:
    place = dim % len(entries)
    return entries[:place] + entries[place + 1 :]


_RULES: dict[Callable, Callable[..., TensorMeta | None]] = {
    _aten.select.int: _select,
    _aten.unsqueeze.default: _unsqueeze,
    _aten.t.default: _t,
    _aten.slice.Tensor: _slice,
    _aten.mm.default: _mm,
    _aten.cat.default: _cat,
    _aten.add.Tensor: _add,
    _aten.new_zeros.default: _new_zeros,
}
