# SPDX-License-Identifier: Apache-2.0
r"""`Digest`: whether two sweeps over data saw the same examples.

$$ s_k = \sum_b \langle w_k, x_b \rangle, \qquad k = 1, 2 $$

over all examples x_b of a kind, with fixed weights for the places within an example. The order of
the examples and how they are put into batches do not matter. Padding adds p <w_k, 1> over the
places that are padded: of two sweeps that pad differently, what one value p explains is no
difference.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

# Entries converted to float64 at a time, or a sixteenth of a tensor.
_CHUNK = 1 << 14
# A part of the sum of absolute values: sums in another order differ by some 1e-15, and features
# that were computed in float32 for each batch by 1e-7 at random places.
_EQUAL = 1e-8


class Digest:
    """The sums over a sweep, for every part of a batch that has a name.

    >>> x = torch.arange(12.0).view(4, 3)
    >>> whole, parts, mirrored = Digest(), Digest(), Digest()
    >>> whole.add({"x": x}), parts.add({"x": x[2:]}), parts.add({"x": x[:2]})
    (None, None, None)
    >>> mirrored.add({"x": x.flip(1)})
    >>> parts.difference(whole), mirrored.difference(whole)
    (None, "['x']")
    """

    def __init__(self) -> None:
        self._sums: dict[str, list[Tensor]] = {}

    def add(self, batch: Any) -> None:
        """See a batch: any nesting of tensors."""
        for name, tensor in _named(batch, ""):
            if tensor.layout is torch.strided and tensor.numel() > 0:
                self._sums.setdefault(name, []).append(_sums(tensor))

    def difference(self, other: Digest) -> str | None:
        """The name of a part that differs; None if there is none."""
        for name in {**self._sums, **other._sums}:
            parts = [_total(sweep._sums.get(name, [])) for sweep in (self, other)]
            if _differ(*parts):
                return name
        return None


def _named(tree: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors by the keys on the way to them: what is in a list may be there in another order."""
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, child in tree.items():
            yield from _named(child, f"{path}[{key!r}]")
    elif isinstance(tree, (list, tuple)):
        for child in tree:
            yield from _named(child, path)


def _sums(tensor: Tensor) -> Tensor:
    """(s_1, s_2, <w_1, 1>, <w_2, 1>, sum |x|) of the rows of a tensor."""
    rows = tensor.detach()
    rows = rows.cpu() if rows.device.type == "mps" else rows  # which has no float64
    rows = torch.view_as_real(rows) if rows.is_complex() else rows
    weights = _weights(rows.shape[1:], rows.device)
    rows = rows.reshape(-1, len(weights))
    step = max(1, max(_CHUNK, rows.numel() // 16) // len(weights))
    sum_, size = weights.new_zeros(len(weights)), weights.new_zeros(1)
    for piece in rows.split(step):
        exact = piece.to(torch.float64)
        sum_, size = sum_ + exact.sum(0), size + exact.abs().sum()
    return torch.cat([sum_ @ weights, len(rows) * weights.sum(0), size])


@functools.lru_cache(maxsize=32)
def _weights(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """The weights w_1, w_2 of the places, side by side: a product of one for each dimension."""
    with torch.inference_mode(False):
        weights = torch.ones(1, 2, dtype=torch.float64, device=device)
        for size in shape:
            weights = (weights[:, None] * _sequences(size, device)).flatten(0, 1)
    return weights


def _sequences(size: int, device: torch.device) -> Tensor:
    """Two sequences of numbers between 1/2 and 3/2 that repeat nowhere, shape (size, 2)."""
    places = torch.arange(1, size + 1, dtype=torch.float64, device=device)
    steps = places.new_tensor([(math.sqrt(5.0) - 1.0) / 2.0, math.sqrt(2.0) - 1.0])
    return 0.5 + torch.frac(places[:, None] * steps)


def _total(parts: list[Tensor]) -> Tensor:
    zero = torch.zeros(1, 5, dtype=torch.float64)
    return torch.cat([zero, *(part.cpu()[None] for part in parts)]).sum(0)


def _differ(one: Tensor, two: Tensor) -> bool:
    """Whether more differs than padding by one value can explain; not for NaN."""
    change, ones = (one - two)[:2], (one - two)[2:4]
    if float(ones.norm()) > _EQUAL * float(one[2:4].norm()):
        change = change - ones * (change @ ones) / (ones @ ones)
    return float(change.norm()) > _EQUAL * float(one[4] + two[4])
