# SPDX-License-Identifier: Apache-2.0
r"""`SweepChecksum`: whether two sweeps over data saw the same examples.

$$ s_k = \sum_b \langle w_k, x_b \rangle, \qquad k = 1, 2 $$

over all examples x_b of an entry of the batches, with fixed weights w_k for the positions within
an example. The order of the examples and the sizes of the batches do not matter. Padding with a
value p adds p <w_k, 1> over the padded positions: a difference between two sweeps that one value p
explains is ignored.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from hesse.data.trees import named_tensors

# Entries converted to float64 at a time, or a sixteenth of a tensor.
_CHUNK = 1 << 14
# Relative to the sum of absolute values: summation in another order changes it by about 1e-15, and
# features computed in float32 batch by batch by 1e-7 at random positions.
_RTOL = 1e-8


class SweepChecksum:
    """The sums over a sweep, for every named entry of its batches.

    >>> x = torch.arange(12.0).view(4, 3)
    >>> whole, halves, mirrored = SweepChecksum(), SweepChecksum(), SweepChecksum()
    >>> whole.add({"x": x}), halves.add({"x": x[2:]}), halves.add({"x": x[:2]})
    (None, None, None)
    >>> mirrored.add({"x": x.flip(1)})
    >>> halves.difference(whole), mirrored.difference(whole)
    (None, "['x']")
    """

    def __init__(self) -> None:
        self._sums: dict[str, list[Tensor]] = {}

    def add(self, batch: Any) -> None:
        """Add a batch: any nesting of tensors."""
        for name, tensor in named_tensors(batch):
            if tensor.layout is torch.strided and tensor.numel() > 0:
                self._sums.setdefault(name, []).append(_sums(tensor))

    def difference(self, other: SweepChecksum) -> str | None:
        """The name of an entry that differs; None if there is none."""
        for name in {**self._sums, **other._sums}:
            if _differ(self._total(name), other._total(name)):
                return name
        return None

    def _total(self, name: str) -> Tensor:
        zero = torch.zeros(1, 5, dtype=torch.float64)
        return torch.cat([zero, *(sums.cpu()[None] for sums in self._sums.get(name, []))]).sum(0)


def _sums(tensor: Tensor) -> Tensor:
    """(s_1, s_2, <w_1, 1>, <w_2, 1>, sum |x|) of the rows of a tensor."""
    rows = tensor.detach()
    rows = rows.cpu() if rows.device.type == "mps" else rows  # mps has no float64
    rows = torch.view_as_real(rows) if rows.is_complex() else rows
    weights = _weights(rows.shape[1:], rows.device)
    rows = rows.reshape(-1, len(weights))
    step = max(1, max(_CHUNK, rows.numel() // 16) // len(weights))
    sum_, size = weights.new_zeros(len(weights)), weights.new_zeros(1)
    for chunk in rows.split(step):
        exact = chunk.to(torch.float64)
        sum_, size = sum_ + exact.sum(0), size + exact.abs().sum()
    return torch.cat([sum_ @ weights, len(rows) * weights.sum(0), size])


@functools.lru_cache(maxsize=32)
def _weights(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """w_1 and w_2 as columns: products of one sequence for each dimension of an example."""
    with torch.inference_mode(False):
        weights = torch.ones(1, 2, dtype=torch.float64, device=device)
        for size in shape:
            weights = (weights[:, None] * _sequences(size, device)).flatten(0, 1)
    return weights


def _sequences(size: int, device: torch.device) -> Tensor:
    """Two sequences of distinct numbers between 1/2 and 3/2, shape (size, 2)."""
    positions = torch.arange(1, size + 1, dtype=torch.float64, device=device)
    steps = positions.new_tensor([(math.sqrt(5.0) - 1.0) / 2.0, math.sqrt(2.0) - 1.0])
    return 0.5 + torch.frac(positions[:, None] * steps)


def _differ(one: Tensor, two: Tensor) -> bool:
    """Whether two sums differ by more than padding with one value explains; False for NaN."""
    change, ones = (one - two)[:2], (one - two)[2:4]
    if float(ones.norm()) > _RTOL * float(one[2:4].norm()):
        change = change - ones * (change @ ones) / (ones @ ones)
    return float(change.norm()) > _RTOL * float(one[4] + two[4])
