# SPDX-License-Identifier: Apache-2.0
"""Batches: what a user's data look like, and how much each batch weighs.

Accepted are a pair (inputs, targets), any iterable of such pairs, and a DataLoader; the inputs may
be a tensor, a tuple of tensors (positional arguments of the model) or a mapping (its keyword
arguments). A batch that is itself a mapping is both: the model is called with its entries and the
loss sees all of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.data.forms import as_batches, inputs_and_targets
from hesse.data.same_every_sweep import PAIRS, SweepChecksum
from hesse.data.trees import flatten, map_tensors, tensors
from hesse.engine.data_version import versions
from hesse.errors import DataError, check_callable

Weight = Callable[[Any, Any], float]
KnownWeight = Callable[[Any, Any, float], float]


@dataclass(frozen=True)
class Batch:
    """Inputs, targets, and the weight of their loss in the whole."""

    inputs: Any
    targets: Any
    weight: float
    device: torch.device | None = None
    """Of two plain tensors that autograd can save; None where one has to look."""

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on `device`."""

        def move(tensor: Tensor) -> Tensor:
            moved = tensor.to(device, non_blocking=True)
            with torch.inference_mode(False):  # a loader read in inference mode: autograd must save
                return moved.clone() if moved.is_inference() else moved

        return Batch(map_tensors(move, self.inputs), map_tensors(move, self.targets), self.weight)


def flatten_batch(batch: Batch) -> tuple[tuple[Tensor, ...], Hashable]:
    """The tensors of a batch, each once, and a key of everything else; see `trees.flatten`.

    The losses of two batches of one key differ through the entries of their tensors only.
    """
    return flatten((batch.inputs, batch.targets))


class Batches:
    """The batches of a data set, the same set at every sweep.

    Args:
        data: a pair, an iterable of batches or a DataLoader. An iterator that can be read only once
            is read now, into a list.
        weight: (inputs, targets) -> the weight of a batch, as the user says; None if he does not.
        known: (inputs, targets, number of examples) -> the weight, as the loss says; default: the
            number of examples.
        is_cut: whether the data are microbatches of other `Batches`, which check every sweep.
        may_be_empty: whether there may be no batch, since other processes have some.

    Batches of weight zero, of which the loss sees nothing, are left out, but of `with_unseen()`.

    >>> batches = Batches((torch.zeros(5, 2), torch.zeros(5)))
    >>> batches.count, batches.total_weight
    (1, 5.0)
    """

    def __init__(
        self,
        data: Any,
        weight: Weight | None = None,
        *,
        known: KnownWeight | None = None,
        is_cut: bool = False,
        may_be_empty: bool = False,
    ) -> None:
        check_callable(weight=weight)
        self.weight, self.known, self.is_cut = weight, known, is_cut
        self.reads_targets = weight is None and getattr(known, "reads_targets", False)
        self._batches = as_batches(data)
        self._known_weights: dict[int, tuple[Any, Hashable, float]] = {}
        # A list holds its tensors; a loader may give others in every sweep.
        may_change = not is_cut and not isinstance(self._batches, (list, tuple))
        self._checksum = SweepChecksum() if may_change else None
        self._leaves_out = False
        weights = [batch.weight for batch in self._sweep(self._checksum)]
        if not any(weights) and not may_be_empty:
            raise DataError(
                expected="at least one batch",
                got="none",
                remedy="Give data that are not empty (an iterator may have been used up already, "
                "or every target is one that the loss ignores).",
            )
        self.total_weight = sum(weights)
        self._num_batches, self.count = len(weights), sum(weight > 0.0 for weight in weights)
        self._leaves_out = True

    def with_unseen(self) -> Batches:
        """All batches, those of weight zero too: the model has outputs for them."""
        other = copy.copy(self)
        other._leaves_out, other.count = False, self._num_batches
        return other

    def __iter__(self) -> Iterator[Batch]:
        total, checksum = 0.0, None if self._checksum is None else SweepChecksum()
        for batch in self._sweep(checksum):
            total += batch.weight
            yield batch
        if abs(total - self.total_weight) > 1e-9 * self.total_weight:
            raise DataError(
                expected=f"the same data at every sweep (total weight {self.total_weight:g})",
                got=f"total weight {total:g}",
                remedy="Use a DataLoader with a fixed data set, without drop_last, or a list.",
            )
        if checksum is not None and self._checksum is not None:
            _check_same(checksum, self._checksum)

    @property
    def are_held(self) -> bool:
        """Whether the tensors stay from sweep to sweep, so that a write to one shows."""
        return isinstance(self._batches, (list, tuple)) or getattr(self._batches, "are_held", False)

    @property
    def first(self) -> Batch:
        """The first batch."""
        return next(self._sweep())

    @property
    def first_of_several(self) -> Batch:
        """The first batch of at least two examples, in whose tensors they can be found; or any."""
        first = self.first
        if _count_or_none(first.inputs) != 1:
            return first
        return next((b for b in self._sweep() if _count_or_none(b.inputs) != 1), first)

    def weigh(self, inputs: Any, targets: Any) -> float:
        """The weight of a batch, at least zero."""
        if self.weight is not None:
            weight = float(self.weight(inputs, targets))
        elif self.known is not None:
            weight = self.known(inputs, targets, _count(inputs))
        else:
            weight = float(_count(inputs))
        if not 0.0 <= weight < float("inf"):
            raise _not_positive(weight)
        return weight

    def _sweep(self, checksum: SweepChecksum | None = None) -> Iterator[Batch]:
        """The batches; the checksum is of all of them.

        In another order the examples of one that is left out may be among others.
        """
        for number, given in enumerate(self._batches):
            inputs, targets = inputs_and_targets(given)
            weight = self._weight_of(number, inputs, targets)
            if weight == 0.0 and self.weight is None and _count(inputs) == 0:
                raise _not_positive(weight)
            batch = Batch(inputs, targets, weight, _device(inputs, targets))
            if checksum is not None and self._checksum is not None:
                checksum.add(_named(batch))
                _check_dtypes(checksum, self._checksum)
            if weight > 0.0 or not self._leaves_out:
                yield batch

    def _weight_of(self, number: int, inputs: Any, targets: Any) -> float:
        """As `weigh`; that of a known loss, which reads the targets, is kept while they stay."""
        content = self._content(targets) if self.reads_targets and self.are_held else None
        if content is None:
            return self.weigh(inputs, targets)
        known = self._known_weights.get(number)
        if known is None or known[1] != content:
            # The targets are held so that their memory is not given to others.
            known = targets, content, self.weigh(inputs, targets)
            self._known_weights[number] = known
        return known[2]

    @staticmethod
    def _content(targets: Any) -> Hashable:
        """What changes when the targets do; None where that cannot be told."""
        if not isinstance(targets, Tensor) or targets.is_inference():
            return None
        return versions([targets]), targets.shape, targets.dtype


def _device(inputs: Any, targets: Any) -> torch.device | None:
    """The device of two tensors; None if they are on two, or are something else."""
    if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor):
        return None
    ready = not (inputs.is_inference() or targets.is_inference())
    return inputs.device if ready and inputs.device == targets.device else None


def _named(batch: Batch) -> dict[str, Any]:
    """The content of a batch with the names that an error gives it."""
    same = batch.targets is batch.inputs
    return {"inputs": batch.inputs} | ({} if same else {"targets": batch.targets})


def _difference(name: str) -> str:
    if name == PAIRS:
        return (
            "batch['inputs'] that meet other batch['targets'], or other inputs, than at the first "
            "sweep"
        )
    return f"other numbers in batch{name} than at the first sweep"


def _check_dtypes(checksum: SweepChecksum, first: SweepChecksum) -> None:
    """Raise where a batch is of a dtype that the first sweep had not, before f sees it."""
    new = checksum.new_dtype(first)
    if new is not None:
        raise DataError(
            expected="the same dtypes at every sweep",
            got=f"batch{new[0]} of {new[1]}, other than at the first sweep",
            remedy="Give a loader whose batches have the same dtypes whenever they are read.",
        )


def _check_same(checksum: SweepChecksum, first: SweepChecksum) -> None:
    name = checksum.difference(first)
    if name is not None:
        raise DataError(
            expected="the same data at every sweep, in any order",
            got=_difference(name),
            remedy="Give a list of batches, as list(loader) does; or switch augmentation, "
            "noise and sampling with replacement off, or seed them again for every sweep. "
            "Where batches number their elements, as batched graphs do, set shuffle=False.",
        )


def _not_positive(weight: float) -> DataError:
    return DataError(
        expected="batches of positive weight (by default the number of examples)",
        got=f"a batch of weight {weight:g}",
        remedy="Leave out empty batches; let weight(inputs, targets) be a positive number.",
    )


def _count_or_none(inputs: Any) -> int | None:
    return next((tensor.shape[0] for tensor in tensors(inputs) if tensor.ndim > 0), None)


def _count(inputs: Any) -> int:
    """The size of the first dimension of the first tensor that has one."""
    count = _count_or_none(inputs)
    if count is not None:
        return count
    raise DataError(
        expected="inputs whose first dimension counts the examples",
        got="inputs without such a tensor",
        remedy="Say how much a batch weighs: weight=lambda inputs, targets: ...",
    )
