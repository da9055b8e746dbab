# SPDX-License-Identifier: Apache-2.0
"""Reductions of segments (bags), composed of operations that can be differentiated twice.

torch has the first derivative of `embedding_bag` and `segment_reduce` only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_BAG_MODES = ("sum", "mean", "max")


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """`torch.nn.functional.embedding_bag`. The derivative is that of its value: dense, not scaled.

    A maximum over the bag is linear in the rows that attain it.
    """
    options = (max_norm, norm_type, scale_grad_by_freq, mode, sparse, per_sample_weights)
    options = (*options, include_last_offset, padding_idx)
    if input.dtype.is_floating_point:  # the order of the arguments in torch 0.4
        input, weight = weight, input
    valid = mode == "sum" or (mode in _BAG_MODES and per_sample_weights is None)
    if max_norm is not None or not valid or (input.ndim == 1) != (offsets is not None):
        return torch.nn.functional.embedding_bag(input, weight, offsets, *options)
    if input.ndim == 2:
        size = input.shape[1]
        offsets = torch.arange(0, input.numel(), max(size, 1), device=input.device)
        include_last_offset = False
        num_bags = len(input)
    else:
        assert offsets is not None
        num_bags = len(offsets) - include_last_offset
    if per_sample_weights is not None:
        per_sample_weights = per_sample_weights.reshape(-1)
    padding = -1 if padding_idx is None else padding_idx % len(weight)
    indices = input.reshape(-1).long()
    if mode == "max":
        return _largest(indices, weight, offsets, include_last_offset, padding)
    bags = _segments(offsets[:num_bags], len(indices))
    kept = (indices != padding).to(weight.dtype)
    rows = weight.index_select(0, indices) * kept.unsqueeze(-1)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(-1)
    result = _sums(rows, bags, num_bags)
    if mode == "mean":
        result = result / _sums(kept, bags, num_bags).clamp(min=1.0).unsqueeze(-1)
    return result


def native_embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`torch.embedding_bag`."""
    options = (scale_grad_by_freq, _BAG_MODES[mode], sparse, per_sample_weights)
    composed = embedding_bag(
        indices, weight, offsets, None, 2, *options, include_last_offset, padding_idx
    )
    with torch.no_grad():
        rest = torch.embedding_bag(
            weight.detach(), indices, offsets, False, mode, False, None, include_last_offset,
            padding_idx,
        )  # fmt: skip
    return composed, *rest[1:]


def _largest(
    indices: Tensor, weight: Tensor, offsets: Tensor, include_last_offset: bool, padding: int
) -> Tensor:
    """The entrywise maximum of the rows of each bag; 0 for a bag without rows."""
    with torch.no_grad():
        out, _, _, rows = torch.embedding_bag(
            weight.detach(), indices, offsets.long(), False, 2, False, None, include_last_offset,
            *(() if padding < 0 else (padding,)),
        )  # fmt: skip
        bags = _segments(offsets[: len(out)], len(indices))
        kept = (indices != padding).to(weight.dtype)
        filled = _sums(kept, bags, len(out)) > 0
        rows = rows.clamp(min=0).long()
    return weight.gather(0, rows) * filled.to(weight.dtype).unsqueeze(-1)


def segment_reduce(
    data: Tensor,
    reduce: str,
    *,
    lengths: Tensor | None = None,
    indices: Tensor | None = None,
    offsets: Tensor | None = None,
    axis: int = 0,
    unsafe: bool = False,
    initial: Any = None,
) -> Tensor:
    """`torch.segment_reduce`, one after another for segments along another axis than the first.

    A maximum has the mean of the slopes of all entries that attain it, as in torch.
    """
    with torch.no_grad():
        options = {"lengths": lengths, "indices": indices, "offsets": offsets, "axis": axis}
        value = torch.segment_reduce(
            data.detach(), reduce, **options, unsafe=unsafe, initial=initial
        )  # which checks the arguments too
    starts, ends = _bounds(lengths, offsets)
    if axis == 0:
        return _reduced(data, reduce, starts, ends, value, initial)
    batch, size = data.shape[:axis], data.shape[axis]
    groups = zip(
        data.reshape(-1, size, *data.shape[axis + 1 :]),
        starts.reshape(-1, starts.shape[-1]),
        ends.reshape(-1, ends.shape[-1]),
        value.reshape(-1, *value.shape[axis:]),
        strict=True,
    )
    parts = [_reduced(d, reduce, s, e, v, initial) for d, s, e, v in groups]
    return torch.stack(parts).reshape(*batch, *parts[0].shape) if parts else value


def _bounds(lengths: Tensor | None, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    if lengths is not None:
        ends = lengths.cumsum(-1)
        return ends - lengths, ends
    assert offsets is not None
    return offsets[..., :-1], offsets[..., 1:]


def _reduced(
    data: Tensor, reduce: str, starts: Tensor, ends: Tensor, value: Tensor, initial: Any
) -> Tensor:
    """The reduction of segments along the first dimension, whose value is known."""
    num = len(starts)
    places = torch.arange(len(data), device=data.device)
    segments = _segments(starts, len(data))
    inside = (segments >= 0) & (places < ends.index_select(0, segments.clamp(min=0)))
    segments = segments.clamp(min=0)
    column = (-1, *(1,) * (data.ndim - 1))
    kept = inside.to(data.dtype).reshape(column)
    if reduce in ("sum", "mean"):
        total = _sums(data * kept, segments, num) + (0.0 if initial is None else initial)
        if reduce == "sum":
            return total
        counts = (ends - starts).reshape(column).to(data.dtype)
        return total / (counts if initial is None else counts.clamp(min=1.0))
    if reduce == "prod":
        width = int((ends - starts).max()) if num else 0
        steps = torch.arange(width, device=data.device)
        at = starts.unsqueeze(-1) + steps
        beyond = at >= ends.unsqueeze(-1)
        table = data[at.clamp(max=len(data) - 1)]
        shape = (*beyond.shape, *(1,) * (data.ndim - 1))
        products = table.masked_fill(beyond.reshape(shape), 1.0).prod(1)
        return products if initial is None else products * initial
    attained = (data.detach() == value.index_select(0, segments)).to(data.dtype) * kept
    counts = _sums(attained, segments, num)
    means = _sums(data * attained, segments, num) / counts.clamp(min=1.0)
    return torch.where(counts > 0, means, value)


def _segments(starts: Tensor, n: int) -> Tensor:
    """The segment that each of n places belongs to; empty segments have none."""
    places = torch.arange(n, device=starts.device, dtype=starts.dtype)
    return torch.searchsorted(starts.contiguous(), places, right=True) - 1


def _sums(rows: Tensor, segments: Tensor, num: int) -> Tensor:
    zeros = rows.new_zeros((num, *rows.shape[1:]))
    return zeros.index_add(0, segments, rows)
