# SPDX-License-Identifier: Apache-2.0
"""Cutting batches along their first dimension, which counts the examples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from hesse.data.batches import Batch, Batches, Weight
from hesse.data.forms import batch_of
from hesse.data.trees import map_tensors, tensors


def num_examples(batch: Batch) -> int | None:
    """The size of the first dimension of all inputs of a batch; None where they differ."""
    sizes = {tensor.shape[0] for tensor in tensors(batch.inputs) if tensor.ndim > 0}
    return sizes.pop() if len(sizes) == 1 else None


def slice_batch(batch: Batch, bounds: Sequence[int], weigh: Weight) -> list[Batch]:
    """The examples from each bound to the next, as batches; the last bound is the batch's size."""
    return [Batch(*part, weigh(*part)) for part in _slices(batch, bounds)]


def _slices(batch: Batch, bounds: Sequence[int]) -> Iterator[tuple[Any, Any]]:
    """(inputs, targets) of the examples from each bound to the next."""
    size = bounds[-1]

    def cut(tree: Any, low: int, high: int) -> Any:
        def cut_tensor(tensor: Tensor) -> Tensor:
            return tensor[low:high] if tensor.ndim > 0 and tensor.shape[0] == size else tensor

        return map_tensors(cut_tensor, tree)

    for low, high in pairwise(bounds):
        inputs = cut(batch.inputs, low, high)
        same = batch.targets is batch.inputs
        yield inputs, inputs if same else cut(batch.targets, low, high)


def split_batch(batch: Batch, weigh: Weight) -> list[Batch] | None:
    """The first third of the examples and the rest, or None where the batch cannot be cut."""
    size = num_examples(batch)
    if size is None or size < 2:
        return None
    return slice_batch(batch, [0, max(1, size // 3), size], weigh)


def first_microbatches(batch: Batch, size: int, weigh: Weight) -> list[Batch]:
    """At most eight microbatches of `size` examples, or the batch itself if it cannot be cut."""
    total = num_examples(batch)
    if total is None or total <= size:
        return [batch]
    return slice_batch(batch, [*range(0, total, size)[:9], total], weigh)[:8]


class Microbatches:
    """The data of some batches, cut into microbatches of about equal size, at most `size` examples.

    >>> import torch
    >>> batches = Batches((torch.zeros(5, 2), torch.zeros(5)))
    >>> [len(inputs) for inputs, _ in Microbatches(batches, 2)]
    [2, 2, 1]
    """

    def __init__(self, batches: Batches, size: int) -> None:
        self._batches, self._size = batches, size

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            for part in _slices(batch, self._bounds(batch)):
                yield batch_of(*part)

    @property
    def are_held(self) -> bool:
        """As of the batches that are cut."""
        return self._batches.are_held

    def _bounds(self, batch: Batch) -> list[int]:
        size = num_examples(batch)
        if size is None or size <= self._size:
            return [0, size or 1]
        step = math.ceil(size / math.ceil(size / self._size))
        return [*range(0, size, step), size]
