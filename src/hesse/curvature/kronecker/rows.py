# SPDX-License-Identifier: Apache-2.0
"""The rows of a use of a parameter: its gradient is a sum over them.

For a factored use, the gradient (groups, p, q) is the sum over rows r of l_r r_r', in every group;
one of l (R, groups, p) and r (R, groups, q) is made of the operand that depends on u, the other of
the one that does not. For another use, `gradient_rows` gives the rows (R, D) that are added up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hesse.curvature.kronecker.examples import ExampleMap
from hesse.tracing.uses import Use


@dataclass(frozen=True)
class OneHot:
    """Rows of zeros with one 1 each, in column `index`; -1 for a row of zeros."""

    index: Tensor
    size: int

    def __len__(self) -> int:
        return len(self.index)


Rows = Tensor | OneHot


Values = Mapping[int, Tensor]
"""Operands, by the value of the graph."""

_OF_CHANNELS = ("channel sum", "batch norm", "group norm")


def rows_of_g(use: Use, tangent: Values, primal: Values) -> Tensor:
    """The rows of a factored use that depend on u: l if `use.g_is_left`, else r."""
    g = tangent[use.g]
    if use.rule == "embedding":
        rows = g.reshape(-1, 1, g.shape[-1])
    elif use.rule in ("mm", "bmm"):
        rows = _matrix_rows(use, g, is_x=use.g_is_left != use.is_swapped)
    elif use.rule == "grouped mm":
        rows = _matrix_rows(use, g, is_x=use.g_is_left != use.is_swapped)
        rows = rows * _members(use, len(rows), primal[use.a[1]])
    elif use.rule == "convolution":
        rows = _places(use, g).flatten(0, 1)
    else:
        rows = _patches(use, g).flatten(0, 1)
    return _multiplied(use, rows, primal)


def rows_by_example(use: Use, tangent: Values, primal: Values, map_: ExampleMap) -> Tensor:
    """The rows of `rows_of_g` as (examples, T, groups, d): a view where they lie in that order."""
    g = tangent[use.g]
    if use.rule == "convolution" and map_.is_of_images(g.shape):
        return _multiplied(use, _places(use, g), primal)
    return map_.arrange(rows_of_g(use, tangent, primal))


def rows_of_a(use: Use, primal: Values, g_shape: Sequence[int]) -> Rows:
    """The rows of a factored use that do not depend on u."""
    a = [primal[number] for number in use.a]
    if use.rule == "embedding":
        return _one_hot(use, a[0], g_shape)
    if use.rule in ("mm", "bmm"):
        return _matrix_rows(use, a[0], is_x=use.g_is_left == use.is_swapped)
    if use.rule == "grouped mm":
        rows = _matrix_rows(use, a[0], is_x=use.g_is_left == use.is_swapped)
        return rows.expand(-1, use.shape[0], -1)
    if use.rule == "convolution":
        return _patches(use, a[0]).flatten(0, 1)
    return _places(use, a[0]).flatten(0, 1)


def rows_of_a_by_example(
    use: Use, primal: Values, g_shape: Sequence[int], map_: ExampleMap, *, ones: bool = False
) -> Rows:
    """The rows of `rows_of_a` by example; of a convolution with places next to one another.

    `ones`: with a 1 appended to dense rows, for a bias.
    """
    if use.rule == "convolution" and map_.is_of_images(g_shape):
        return _patches(use, primal[use.a[0]], ones=ones)
    rows = rows_of_a(use, primal, g_shape)
    if isinstance(rows, OneHot):
        return OneHot(map_.arrange(rows.index + 1) - 1, rows.size)
    return with_ones(map_.arrange(rows)) if ones else map_.arrange(rows)


def gradient_rows(use: Use, tangent: Values, primal: Values) -> Tensor:
    """(R, D): the tensor that the last operation of another use sums over rows."""
    g, a = tangent[use.g], [primal[number] for number in use.a]
    if use.rule == "sum":
        (dims,) = use.settings
        rows = g.movedim(dims, tuple(range(len(dims)))).reshape(-1, *use.shape)
    elif use.rule == "own gradient":
        rows = g.reshape(1, -1)
    else:
        rows = _channels(use, g, a).movedim(1, -1).reshape(-1, *use.shape)
    return _multiplied(use, rows, primal)


def gradient_sums(use: Use, tangent: Values, primal: Values, map_: ExampleMap) -> Tensor:
    """(examples, D): the sum of the rows of `gradient_rows` over those of each example."""
    g = tangent[use.g]
    if use.rule in _OF_CHANNELS and g.ndim > 2 and map_.is_of_images(g.shape):
        sums = _channels(use, g, [primal[number] for number in use.a]).flatten(2).sum(2)
        return _multiplied(use, sums, primal)
    return map_.sums(gradient_rows(use, tangent, primal))


def _multiplied(use: Use, rows: Tensor, primal: Values) -> Tensor:
    rows = rows if use.scale == 1.0 else use.scale * rows
    for number in use.multipliers:
        rows = rows * primal[number].reshape(-1)
    return rows


def with_ones(rows: Tensor) -> Tensor:
    """Rows with a 1 appended, for a bias."""
    return torch.cat([rows, rows.new_ones(*rows.shape[:-1], 1)], dim=-1)


def dense(rows: Rows, dtype: torch.dtype) -> Tensor:
    """The rows as a tensor (R, groups, d)."""
    if isinstance(rows, Tensor):
        return rows.to(dtype)
    result = torch.zeros(len(rows), 1, rows.size + 1, dtype=dtype, device=rows.index.device)
    result.scatter_(2, (rows.index % (rows.size + 1))[:, None, None], 1.0)
    return result[..., : rows.size]


# -- Operations ------------------------------------------------------------------------------------


def _matrix_rows(use: Use, operand: Tensor, *, is_x: bool) -> Tensor:
    """Of x y with x (groups, p, R) and y (groups, R, q), without the groups in `mm`."""
    if use.rule != "bmm":
        return (operand.t() if is_x else operand)[:, None]
    return operand.movedim(2, 0) if is_x else operand.movedim(1, 0)


def _members(use: Use, rows: int, offsets: Tensor) -> Tensor:
    """(R, groups, 1): whether a row is of a group, whose rows end at its offset."""
    row = torch.arange(rows, device=offsets.device)
    group = torch.searchsorted(offsets, row.to(offsets.dtype), right=True)
    return group[:, None, None] == torch.arange(use.shape[0], device=group.device)[:, None]


def _one_hot(use: Use, indices: Tensor, g_shape: Sequence[int]) -> OneHot:
    padding, size, summed = use.settings
    index = indices.reshape(summed).expand(tuple(g_shape[:-1])).reshape(-1)
    return OneHot(torch.where(index == padding, -1, index) if padding >= 0 else index, size)


def _places(use: Use, g: Tensor) -> Tensor:
    """Every place of the outputs of a convolution: (N, T, groups, channels / groups).

    A transposed convolution is one from its outputs to its inputs.
    """
    groups = use.settings[4]
    return g.unflatten(1, (groups, -1)).flatten(3).permute(0, 3, 1, 2)


def _patches(use: Use, x: Tensor, *, ones: bool = False) -> Tensor:
    """The windows that the places are computed from: (N, T, groups, channels / groups * K).

    Places are next to one another in memory. `ones`: with a 1 appended.
    """
    kernel, stride, padding, dilation, groups, sizes = use.settings
    N, channels = x.shape[:2]
    x = F.pad(x, [p for pad in reversed(padding) for p in (pad, pad)])
    for i, (k, s, step, size) in enumerate(zip(kernel, stride, dilation, sizes, strict=True)):
        x = x.unfold(2 + i, (k - 1) * step + 1, s)[..., ::step].narrow(2 + i, 0, size)
    places = len(sizes)
    windows = x.movedim(tuple(range(2, 2 + places)), tuple(range(-places, 0)))
    windows = windows.unflatten(1, (groups, -1))
    size = channels // groups * math.prod(kernel)
    rows = x.new_empty(N, groups, size + ones, math.prod(sizes))
    rows[:, :, :size].view(windows.shape).copy_(windows)
    rows[:, :, size:] = 1.0
    return rows.permute(0, 3, 1, 2)


def _channels(use: Use, g: Tensor, a: Sequence[Tensor]) -> Tensor:
    """(N, channels, ...): what the gradient of a number for each channel is the sum of."""
    if use.rule == "batch norm":
        return g * _batch_normed(use, *a)
    if use.rule == "group norm":
        return g * _group_normed(use, *a)
    return g


def _batch_normed(use: Use, x: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """The inputs of a BatchNorm, normalised; `spread` is a variance, or 1 / sqrt of it."""
    trains, eps = use.settings
    shape = [1, -1, *([1] * (x.ndim - 2))]
    scale = spread if trains else torch.rsqrt(spread + eps)
    return (x - mean.view(shape)) * scale.view(shape)


def _group_normed(use: Use, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    (groups,) = use.settings
    split = x.reshape(x.shape[0], groups, -1)
    shape = (x.shape[0], groups, 1)
    return ((split - mean.view(shape)) * rstd.view(shape)).view_as(x)
