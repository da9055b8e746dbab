# SPDX-License-Identifier: Apache-2.0
r"""`SweepChecksum`: whether two sweeps over data saw the same examples.

$$ s_k = \sum_b \langle w_k, x_b \rangle, \qquad k = 1, 2 $$

over all examples x_b of an entry of the batches, with fixed weights w_k for the positions within
an example. The order of the examples and the sizes of the batches do not matter. Padding with a
value p adds p <w_k, 1> over the padded positions: a difference between two sweeps that one value p
explains is ignored.

Which inputs meet which targets is seen in the sums over the examples

$$ g_{jk} = \sum_b \langle w_1, x_b^{(j)} \rangle \, \langle w_1, x_b^{(k)} \rangle $$

of every two entries j and k whose examples have one shape throughout, as those without padding;
of large examples the middle counts.
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
# Entries of an example, at most, that tell it from others in the sums over pairs.
_SAMPLED = 128
# Relative to the sum of absolute values: summation in another order changes it by about 1e-15, and
# features computed in float32 batch by batch by 1e-7 at random positions.
_RTOL = 1e-8


PAIRS = "pairs"
"""The name of a difference in which examples go together, not in the examples of one entry."""

# Relative to their sums of squares: features computed in float32 batch by batch differ by 1e-7.
_RTOL_PAIRS = 1e-6


class SweepChecksum:
    """The sums over a sweep, for every named entry of its batches and for pairs of entries.

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
        self._products: dict[tuple[int, ...], list[Tensor]] = {}
        self._shapes: dict[int, set[tuple[int, ...]]] = {}
        self._dtypes: dict[str, set[torch.dtype]] = {}

    def add(self, batch: Any) -> None:
        """Add a batch: any nesting of tensors."""
        features: dict[int, Tensor] = {}
        for number, (name, tensor) in enumerate(named_tensors(batch)):
            self._dtypes.setdefault(name, set()).add(tensor.dtype)
            if tensor.layout is torch.strided and tensor.numel() > 0:
                sums, features[number] = _sums(tensor)
                self._sums.setdefault(name, []).append(sums)
                self._shapes.setdefault(number, set()).add(tuple(tensor.shape[1:]))
        for rows in {len(feature) for feature in features.values()}:
            entries = tuple(n for n, feature in features.items() if len(feature) == rows)
            if len(entries) > 1:
                stacked = torch.stack([features[n] for n in entries])
                self._products.setdefault(entries, []).append(stacked @ stacked.T)

    def difference(self, other: SweepChecksum) -> str | None:
        """The name of an entry that differs, or `PAIRS`; None if there is none."""
        for name in {**self._sums, **other._sums}:
            nothing = [torch.zeros(5, dtype=torch.float64)]
            one, two = (_total(c._sums.get(name, nothing)) for c in (self, other))
            if _differ(one, two):
                return name
        return PAIRS if self._pairs_differ(other) else None

    def new_dtype(self, other: SweepChecksum) -> tuple[str, torch.dtype] | None:
        """The name of an entry and a dtype that it has here and not there; None without one."""
        for name, dtypes in self._dtypes.items():
            for dtype in dtypes - other._dtypes.get(name, dtypes):
                return name, dtype
        return None

    def _pairs_differ(self, other: SweepChecksum) -> bool:
        for entries in self._products.keys() & other._products.keys():
            fixed = [
                self._shapes[n] == other._shapes[n] and len(self._shapes[n]) == 1 for n in entries
            ]
            one, two = _total(self._products[entries]), _total(other._products[entries])
            size = (one + two).diagonal().sqrt()
            differ = (one - two).abs() > _RTOL_PAIRS * size.outer(size)
            known = torch.tensor(fixed)
            if bool((differ & known & known[:, None]).any()):
                return True
        return False


def _total(parts: list[Tensor]) -> Tensor:
    return torch.stack([part.cpu() for part in parts]).sum(0)


def _sums(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """(s_1, s_2, <w_1, 1>, <w_2, 1>, sum |x|) of the rows of a tensor, and a feature of each."""
    rows = tensor.detach()
    rows = rows.cpu() if rows.device.type == "mps" else rows  # mps has no float64
    rows = torch.view_as_real(rows) if rows.is_complex() else rows
    weights = _weights(rows.shape[1:], rows.device)
    rows = rows.reshape(-1, len(weights))
    start = max(0, len(weights) - _SAMPLED) // 2
    some = slice(start, start + _SAMPLED)
    step = max(1, max(_CHUNK, rows.numel() // 16) // len(weights))
    sum_, size, features = weights.new_zeros(len(weights)), weights.new_zeros(1), []
    for chunk in rows.split(step):
        exact = chunk.to(torch.float64)
        sum_, size = sum_ + exact.sum(0), size + exact.abs().sum()
        features.append(exact[:, some] @ weights[some, 0])
    return torch.cat([sum_ @ weights, len(rows) * weights.sum(0), size]), torch.cat(features)


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
