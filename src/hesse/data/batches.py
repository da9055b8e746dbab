# SPDX-License-Identifier: Apache-2.0
"""Batches: what a user's data look like, and how much each batch weighs.

Accepted are a pair (inputs, targets), any iterable of such pairs, and a DataLoader; the inputs may
be a tensor, a tuple of tensors (positional arguments of the model) or a mapping (its keyword
arguments). A batch that is itself a mapping is both: the model is called with its entries and the
loss sees all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hesse.data.same_every_sweep import Digest
from hesse.errors import DataError

Weight = Callable[[Any, Any], float]


@dataclass(frozen=True)
class Batch:
    """Inputs, targets, and the weight of their loss in the whole."""

    inputs: Any
    targets: Any
    weight: float

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on `device`."""

        def move(tensor: Tensor) -> Tensor:
            moved = tensor.to(device, non_blocking=True)
            with torch.inference_mode(False):  # a loader read in inference mode: autograd must save
                return moved.clone() if moved.is_inference() else moved

        return Batch(maptensors(move, self.inputs), maptensors(move, self.targets), self.weight)


class Batches:
    """The batches of a data set, the same set at every sweep.

    Args:
        data: a pair, an iterable of batches or a DataLoader. An iterator that can be read only once
            is read now, into a list.
        weight: (inputs, targets) -> the weight of a batch; None: its number of examples.
        call: how to name the caller in an error.

    >>> batches = Batches((torch.zeros(5, 2), torch.zeros(5)))
    >>> batches.count, batches.total_weight
    (1, 5.0)
    """

    def __init__(
        self, data: Any, weight: Weight | None = None, call: str = "hesse.Batches"
    ) -> None:
        self._call, self.weight = call, weight
        self._batches = self._as_iterable(data)
        self._digest = Digest() if self._is_made_anew else None
        weights = [self._note(batch, self._digest).weight for batch in self._sweep()]
        if not weights:
            raise DataError(
                call,
                expected="at least one batch",
                got="none",
                remedy="Give data that are not empty (an iterator may have been used up already).",
            )
        self.count, self.total_weight = len(weights), sum(weights)

    def __iter__(self) -> Iterator[Batch]:
        total, digest = 0.0, Digest()
        for batch in self._sweep():
            total += batch.weight
            yield self._note(batch, digest)
        if abs(total - self.total_weight) > 1e-9 * self.total_weight:
            raise DataError(
                self._call,
                expected=f"the same data at every sweep (total weight {self.total_weight:g})",
                got=f"total weight {total:g}",
                remedy="Use a DataLoader with a fixed data set, without drop_last, or a list.",
            )
        self._check_content(digest)

    @property
    def first(self) -> Batch:
        """The first batch."""
        return next(self._sweep())

    @property
    def is_cut(self) -> bool:
        """Whether these are parts of the user's batches."""
        return isinstance(self._batches, SmallBatches)

    @property
    def _is_made_anew(self) -> bool:
        """Whether a sweep may give other tensors than the last one; what is cut is seen before."""
        return not isinstance(self._batches, (list, tuple, SmallBatches))

    def _note(self, batch: Batch, digest: Digest | None) -> Batch:
        if digest is not None and self._is_made_anew:
            same = batch.targets is batch.inputs
            parts = (batch.inputs,) if same else (batch.inputs, batch.targets)
            digest.add(dict(zip(("inputs", "targets"), parts, strict=False)))
        return batch

    def _check_content(self, digest: Digest) -> None:
        part = None if self._digest is None else digest.difference(self._digest)
        if part is not None:
            raise DataError(
                self._call,
                expected="the same data at every sweep, in any order",
                got=f"other numbers in batch{part} than at the first sweep",
                remedy="Give a list of batches, as list(loader) does; or switch augmentation, "
                "noise and sampling with replacement off, or seed them anew in every sweep. Where "
                "batches number their parts, as batched graphs do, set shuffle=False.",
            )

    def _as_iterable(self, data: Any) -> Iterable[Any]:
        if _is_pair(data) or isinstance(data, Mapping):
            return [data]
        if isinstance(data, Tensor) or not isinstance(data, Iterable):
            raise self._unknown_form(data, "data")
        self._check_loader(data)
        return list(data) if isinstance(data, Iterator) else data

    def _check_loader(self, data: Any) -> None:
        sampler = getattr(data, "sampler", None)
        if getattr(data, "drop_last", False) and isinstance(
            sampler, torch.utils.data.RandomSampler
        ):
            raise DataError(
                self._call,
                expected="the same data at every sweep",
                got="a DataLoader with shuffle=True and drop_last=True, which leaves out other "
                "examples each time",
                remedy="Use drop_last=False (ragged batches are weighted), or do not shuffle.",
            )

    def _sweep(self) -> Iterator[Batch]:
        for batch in self._batches:
            yield self._parse(batch)

    def _parse(self, batch: Any) -> Batch:
        if isinstance(batch, Mapping):
            inputs = targets = batch
        elif _is_pair(batch):
            inputs, targets = batch
        else:
            raise self._unknown_form(batch, "a batch")
        return Batch(inputs, targets, self.weigh(inputs, targets))

    def weigh(self, inputs: Any, targets: Any) -> float:
        """The weight of a batch."""
        weight = self._count(inputs) if self.weight is None else self.weight(inputs, targets)
        weight = float(weight)
        if not weight > 0.0 or weight == float("inf"):
            raise DataError(
                self._call,
                expected="batches of positive weight (by default the number of examples)",
                got=f"a batch of weight {weight:g}",
                remedy="Leave out empty batches; let weight(inputs, targets) be a positive number.",
            )
        return weight

    def _count(self, inputs: Any) -> int:
        for tensor in tensors(inputs):
            if tensor.ndim > 0:
                return tensor.shape[0]
        raise DataError(
            self._call,
            expected="inputs whose first dimension counts the examples",
            got="inputs without such a tensor",
            remedy="Say how much a batch weighs: weight=lambda inputs, targets: ...",
        )

    def _unknown_form(self, data: Any, what: str) -> DataError:
        size = f" of {len(data)} entries" if isinstance(data, (list, tuple)) else ""
        return DataError(
            self._call,
            expected=f"{what} as a pair (inputs, targets), a mapping, or an iterable of these",
            got=f"a {type(data).__name__}{size}",
            remedy="For several inputs give ((x1, x2), targets); for none but inputs, as in an "
            "autoencoder, (inputs, inputs).",
        )


def _is_pair(data: Any) -> bool:
    """(inputs, targets), as against a list or tuple of two batches."""
    if not isinstance(data, (list, tuple)) or len(data) != 2:
        return False
    inputs, targets = data
    if isinstance(inputs, (Tensor, Mapping)):
        # Two mappings are two batches, unless the second has no part of the first: rare; a list of
        # two mappings is read as batches, a tuple of them as (inputs, targets).
        return not (isinstance(inputs, Mapping) and isinstance(targets, Mapping)) or isinstance(
            data, tuple
        )
    return isinstance(targets, Tensor) and isinstance(inputs, (list, tuple))


def split_batch(batch: Batch, weigh: Weight) -> list[Batch] | None:
    """The first third of the examples and the rest, or None where there is no such split."""
    size = examples(batch)
    third = max(1, (size or 0) // 3)
    return None if size is None or size < 2 else pieces(batch, [0, third, size], weigh)


def first_pieces(batch: Batch, most: int, weigh: Weight) -> list[Batch]:
    """Some batches of so many of the examples, or the batch itself where it cannot be cut."""
    size = examples(batch)
    if size is None or size <= most:
        return [batch]
    return pieces(batch, [*range(0, size, most)[:9], size], weigh)[:8]


def examples(batch: Batch) -> int | None:
    """How many examples a batch has along the first dimension of all its inputs, if it has."""
    sizes = {tensor.shape[0] for tensor in tensors(batch.inputs) if tensor.ndim > 0}
    return sizes.pop() if len(sizes) == 1 else None


def pieces(batch: Batch, bounds: Sequence[int], weigh: Weight) -> list[Batch]:
    """The examples from bound to bound, as batches of their own."""
    size = bounds[-1]

    def part(tree: Any, low: int, high: int) -> Any:
        def cut(tensor: Tensor) -> Tensor:
            return tensor[low:high] if tensor.ndim > 0 and tensor.shape[0] == size else tensor

        return maptensors(cut, tree)

    result = []
    for low, high in pairwise(bounds):
        inputs = part(batch.inputs, low, high)
        same = batch.targets is batch.inputs
        targets = inputs if same else part(batch.targets, low, high)
        result.append(Batch(inputs, targets, weigh(inputs, targets)))
    return result


class SmallBatches:
    """The data of other batches, in batches of about equal size and at most `most` examples.

    >>> batches = Batches((torch.zeros(5, 2), torch.zeros(5)))
    >>> [len(inputs) for inputs, _ in SmallBatches(batches, 2)]
    [2, 2, 1]
    """

    def __init__(self, batches: Batches, most: int) -> None:
        self._batches, self._most = batches, most

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            size = examples(batch)
            step = size or 1
            if size is not None and size > self._most:
                step = math.ceil(size / math.ceil(size / self._most))
                bounds = [*range(0, size, step), size]
            else:
                bounds = [0, step]
            for piece in pieces(batch, bounds, self._batches.weigh):
                whole = piece.inputs is piece.targets and isinstance(piece.inputs, Mapping)
                yield piece.inputs if whole else (piece.inputs, piece.targets)


def fingerprint(batch: Batch) -> tuple[tuple[Tensor, ...], Hashable]:
    """The tensors of a batch, each once, and what else tells its loss from that of another batch.

    Two batches of one fingerprint differ in the entries of their tensors only. It is None where a
    batch holds objects that may hide tensors.
    """
    found: dict[int, tuple[int, Tensor]] = {}
    opaque = False

    def number(leaf: Any) -> Any:
        nonlocal opaque
        if isinstance(leaf, Tensor):
            return "tensor", found.setdefault(id(leaf), (len(found), leaf))[0]
        opaque |= not (leaf is None or isinstance(leaf, (bool, int, float, str, bytes)))
        return leaf

    key = repr([_form(part, number) for part in (batch.inputs, batch.targets)])
    return tuple(leaf for _, leaf in found.values()), None if opaque else key


def _form(tree: Any, leaf: Callable[[Any], Any]) -> Any:
    if isinstance(tree, Mapping):
        return [(key, _form(child, leaf)) for key, child in tree.items()]
    if isinstance(tree, (list, tuple)):
        return [_form(child, leaf) for child in tree]
    return leaf(tree)


def tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors in a nesting of mappings, lists and tuples of anything."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for child in tree.values():
            yield from tensors(child)
    elif isinstance(tree, (list, tuple)):
        for child in tree:
            yield from tensors(child)


def maptensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The tree with `function` applied to its tensors; anything else stays."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: maptensors(function, child) for key, child in tree.items()}
    if isinstance(tree, (list, tuple)):
        children = [maptensors(function, child) for child in tree]
        return type(tree)(*children) if hasattr(tree, "_fields") else type(tree)(children)
    return tree
