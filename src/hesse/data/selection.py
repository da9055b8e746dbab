# SPDX-License-Identifier: Apache-2.0
"""Some examples of batches, and batches with a weight for each example."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hesse.data.batches import Batch, Batches
from hesse.data.forms import BatchList, batch_of
from hesse.data.slicing import num_examples
from hesse.data.trees import map_tensors
from hesse.errors import ArgumentError, DataError, kind_of


class WeightedTargets(NamedTuple):
    """The targets of a batch, and a weight for each of its examples."""

    targets: Any
    weights: Tensor


class WithWeights:
    """The batches, each with its part of the weights of all examples.

    >>> batches = Batches([(torch.zeros(n, 2), torch.zeros(n)) for n in (2, 1)])
    >>> [targets.weights for _, targets in WithWeights(batches, torch.arange(3.0))]
    [tensor([0., 1.]), tensor([2.])]
    """

    def __init__(self, batches: Batches, weights: Tensor) -> None:
        self._batches, self._weights = batches, weights

    def __iter__(self) -> Iterator[tuple[Any, WeightedTargets]]:
        start = 0
        for batch in self._batches:
            stop = start + count_examples(batch)
            yield batch.inputs, WeightedTargets(batch.targets, self._weights[start:stop])
            start = stop


class Selected:
    """The examples at some places of all batches, batch by batch.

    >>> batches = Batches([(torch.arange(n), torch.zeros(n)) for n in (3, 2, 2)])
    >>> [inputs for inputs, _ in Selected(batches, torch.tensor([0, 2, 5, 5]))]
    [tensor([0, 2]), tensor([0, 0])]
    """

    def __init__(self, batches: Batches, indices: Tensor) -> None:
        self._batches, self._indices = batches, indices

    def __iter__(self) -> Iterator[Any]:
        start = 0
        for batch in self._batches:
            size = count_examples(batch)
            here = (self._indices >= start) & (self._indices < start + size)
            places = self._indices[here] - start
            if len(places):
                yield _taken(batch, places, size)
            start += size


def selected(batches: Batches, indices: Any, *, may_be_empty: bool = False) -> Iterable[Any]:
    """The examples at these places, or where a mask is true; maybe none of them."""
    number = total_examples(batches)
    chosen = checked_indices(indices, number, may_be_empty=may_be_empty)
    return kept(Selected(batches, chosen), batches.are_held)


def kept(batches: Iterable[Any], are_held: bool) -> Iterable[Any]:
    """The batches in a list where their tensors stay from sweep to sweep, or as they are."""
    return BatchList(batches) if are_held else batches


def _taken(batch: Batch, places: Tensor, size: int) -> Any:
    def take(tensor: Tensor) -> Tensor:
        counts = tensor.ndim > 0 and tensor.shape[0] == size
        return tensor.index_select(0, places.to(tensor.device)) if counts else tensor

    inputs = map_tensors(take, batch.inputs)
    same = batch.targets is batch.inputs
    return batch_of(inputs, inputs if same else map_tensors(take, batch.targets))


def count_examples(batch: Batch) -> int:
    """The number of examples of a batch; raises where the inputs do not say it."""
    number = num_examples(batch)
    if number is None:
        raise DataError(
            expected="batches whose first dimension counts the examples",
            got="inputs whose first dimensions differ",
            remedy="Give one example in each batch.",
        )
    return number


def total_examples(batches: Batches) -> int:
    """The number of examples of all batches."""
    return sum(map(count_examples, batches))


def _as_tensor(numbers: Any) -> Tensor | None:
    """The numbers as a tensor; None if they are no numbers."""
    try:
        return torch.as_tensor(numbers).detach()
    except (TypeError, ValueError, RuntimeError):
        return None


def _described(numbers: Any, tensor: Tensor | None) -> str:
    if tensor is None:
        return kind_of(numbers)
    return f"shape {tuple(tensor.shape)}, {tensor.dtype}"


def checked_weights(weights: Any, number: int) -> Tensor:
    """The weights as a vector; raises unless there is a finite one for each example."""
    w = _as_tensor(weights)
    is_vector = w is not None and w.shape == (number,) and w.is_floating_point()
    if w is None or not is_vector or not bool(torch.isfinite(w).all()):
        raise ArgumentError(
            expected=f"a floating-point vector of {number} finite weights, one for each example",
            got=_described(weights, w),
            remedy="Give torch.ones(number of examples) with the weights changed, in the order of "
            "the batches.",
        )
    return w


def checked_indices(indices: Any, number: int, *, may_be_empty: bool = False) -> Tensor:
    """Places as a vector of integers; a mask of booleans marks them."""
    i = _as_tensor(list(indices) if isinstance(indices, (set, frozenset)) else indices)
    if i is not None and i.dtype is torch.bool and i.shape == (number,):
        i = i.nonzero()[:, 0]
    if may_be_empty and i is not None and i.shape == (0,):
        return torch.zeros(0, dtype=torch.long)
    is_vector = i is not None and i.ndim == 1 and i.dtype in (torch.int64, torch.int32)
    if i is None or not is_vector or not len(i) or not 0 <= int(i.min()) <= int(i.max()) < number:
        raise ArgumentError(
            expected=f"places of examples, from 0 to {number - 1}, or a mask of {number} booleans",
            got=_described(indices, i),
            remedy="Give a vector of integers, at least one.",
        )
    return i.long().cpu()
