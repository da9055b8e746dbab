# SPDX-License-Identifier: Apache-2.0
"""What an operation makes: the shape and the strides of its result.

torch tells by running it on the device "meta". For many operations that is a Python function whose
first call imports a compiler, a second's worth of modules, so the few that rewriting adds to a
program are reckoned here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hesse.tracing.graph import Meta, substituted

_aten = torch.ops.aten


def result_of(function: Callable, args: Sequence[Any], metas: dict[int, Meta]) -> Meta:
    """What function(*args) makes of tensors with these metas; on the device of one of them."""
    rule = _RULES.get(function)
    made = None if rule is None else rule(*substituted(args, metas.__getitem__))
    return _by_torch(function, args, metas) if made is None else replace(made, offset=0)


def _by_torch(function: Callable, args: Sequence[Any], metas: dict[int, Meta]) -> Meta:
    devices = []

    def stand_in(number: int) -> Tensor:
        meta = metas[number]
        devices.append(meta.device)
        return torch.empty_strided(meta.shape, meta.stride, dtype=meta.dtype, device="meta")

    made = function(*substituted(args, stand_in))
    return Meta(tuple(made.shape), made.stride(), 0, made.dtype, devices[0])


def _select(a: Meta, dim: int, _: int) -> Meta:
    return replace(a, shape=_without(a.shape, dim), stride=_without(a.stride, dim))


def _unsqueeze(a: Meta, dim: int) -> Meta:
    place = dim % (len(a.shape) + 1)
    step = a.shape[place] * a.stride[place] if place < len(a.shape) else 1
    shape, stride = list(a.shape), list(a.stride)
    shape.insert(place, 1)
    stride.insert(place, step)
    return replace(a, shape=tuple(shape), stride=tuple(stride))


def _transposed(a: Meta) -> Meta:
    return replace(a, shape=a.shape[::-1], stride=a.stride[::-1])


def _slice(a: Meta, dim: int, first: int, last: int) -> Meta:
    shape = list(a.shape)
    size = shape[dim]
    first, last, _ = slice(first, last).indices(size)
    shape[dim] = max(0, last - first)
    return replace(a, shape=tuple(shape))


def _matrix_product(a: Meta, b: Meta) -> Meta:
    return _contiguous(a, (a.shape[0], b.shape[1]))


def _concatenated(parts: Sequence[Meta], dim: int) -> Meta | None:
    first = parts[0]
    if len(first.shape) > 3 or any(part.dtype != first.dtype for part in parts):
        return None  # perhaps channels last
    if not all(_is_plain(part) and len(part.shape) == len(first.shape) for part in parts):
        return None
    shape = list(first.shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    return _contiguous(first, tuple(shape))


def _is_packed(a: Meta) -> bool:
    """Whether its entries fill their memory, in whatever order."""
    reach = 1
    for stride, size in sorted(zip(a.stride, a.shape, strict=True)):
        if stride != reach or size == 1:  # what strides of 1 entry become depends
            return False
        reach *= size
    return True


def _is_plain(a: Meta) -> bool:
    return a.stride == _contiguous(a, a.shape).stride


def _sum(a: Meta, b: Meta) -> Meta | None:
    return a if a.same_layout(b) and _is_packed(a) else None


def _zeros(a: Meta, shape: Sequence[int]) -> Meta:
    return _contiguous(a, tuple(shape))


def _contiguous(like: Meta, shape: tuple[int, ...]) -> Meta:
    stride, reach = [], 1
    for size in reversed(shape):
        stride.append(reach)
        reach *= max(size, 1)
    return replace(like, shape=shape, stride=tuple(reversed(stride)))


def _without(entries: tuple[int, ...], dim: int) -> tuple[int, ...]:
    place = dim % len(entries)
    return entries[:place] + entries[place + 1 :]


_RULES: dict[Callable, Callable[..., Meta | None]] = {
    _aten.select.int: _select,
    _aten.unsqueeze.default: _unsqueeze,
    _aten.t.default: _transposed,
    _aten.slice.Tensor: _slice,
    _aten.mm.default: _matrix_product,
    _aten.cat.default: _concatenated,
    _aten.add.Tensor: _sum,
    _aten.new_zeros.default: _zeros,
}
