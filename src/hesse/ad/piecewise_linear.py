# SPDX-License-Identifier: Apache-2.0
"""Piecewise linear functions, composed of operations that can be differentiated twice.

torch has the first derivative of these only, though the second of what they are composed with needs
no more than that. Its derivatives of `max_unpool` and `as_strided_scatter` are wrong where places
overlap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """(x + 3) / 6, between 0 and 1."""
    return F.hardsigmoid(input, True) if inplace else (input.clamp(-3.0, 3.0) + 3.0) / 6.0


def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The mean over classes i other than y of max(0, margin - x_y + x_i)^p."""
    options = (p, margin, weight, size_average, reduce, reduction)
    if size_average is not None or reduce is not None or input.ndim not in (1, 2):
        return F.multi_margin_loss(input, target, *options)
    with torch.no_grad():  # which checks the arguments
        F.multi_margin_loss(input.detach(), target, *options)
    x, y = input.reshape(-1, input.shape[-1]), target.reshape(-1, 1)
    hinge = (margin - x.gather(1, y) + x).clamp(min=0.0)
    terms = hinge if p == 1 else hinge.square()  # which torch allows, no others
    terms = terms.scatter(1, y, 0.0)
    losses = terms.sum(1) / x.shape[1]
    losses = losses if weight is None else losses * weight[y.squeeze(1)]
    return _reduced(losses, reduction, input.ndim == 2)


def multilabel_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The sum over labels y, and classes i that are none, of max(0, 1 - x_y + x_i) / classes."""
    options = (size_average, reduce, reduction)
    if size_average is not None or reduce is not None or input.ndim not in (1, 2):
        return F.multilabel_margin_loss(input, target, *options)
    with torch.no_grad():
        F.multilabel_margin_loss(input.detach(), target, *options)
    x, y = input.reshape(-1, input.shape[-1]), target.reshape(-1, input.shape[-1])
    listed = (y >= 0).long().cumprod(1).to(x.dtype)  # up to the first -1
    labels = y.clamp(min=0)
    others = (torch.zeros_like(x).scatter_add(1, labels, listed) == 0).to(x.dtype)
    terms = (1.0 - x.gather(1, labels).unsqueeze(2) + x.unsqueeze(1)).clamp(min=0.0)
    losses = (terms * listed.unsqueeze(2) * others.unsqueeze(1)).sum((1, 2)) / x.shape[1]
    return _reduced(losses, reduction, input.ndim == 2)


def _reduced(losses: Tensor, reduction: str, batched: bool) -> Tensor:
    if reduction == "none":
        return losses if batched else losses.squeeze(0)
    return losses.mean() if reduction == "mean" else losses.sum()


def max_unpool(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """One of `torch.nn.functional.max_unpool1d`, 2d and 3d as a choice of entries of its input."""

    def unpool(input: Tensor, indices: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.no_grad():
            count = torch.arange(1, input.numel() + 1, dtype=torch.float64, device=input.device)
            chosen = function(count.reshape(input.shape), indices, *args, **kwargs).long()
        return _choose([input.new_zeros(1), input], chosen)

    return unpool


def as_strided_scatter(
    input: Tensor, src: Tensor, size: Any, stride: Any, storage_offset: int | None = None
) -> Tensor:
    """The input with the entries of src at places in memory, as a choice of entries of both."""
    if not input.is_contiguous() or input.storage_offset() or input.numel() == 0:
        return torch.as_strided_scatter(input, src, size, stride, storage_offset)
    with torch.no_grad():
        count = torch.arange(input.numel() + src.numel(), dtype=torch.float64, device=input.device)
        old, new = count.tensor_split([input.numel()])
        chosen = torch.as_strided_scatter(
            old.clone().reshape(input.shape), new.reshape(src.shape), size, stride, storage_offset
        )
    return _choose([input, src], chosen.long())


def _choose(parts: list[Tensor], chosen: Tensor) -> Tensor:
    entries = torch.cat([part.reshape(-1) for part in parts])
    return entries.index_select(0, chosen.reshape(-1)).reshape(chosen.shape)
