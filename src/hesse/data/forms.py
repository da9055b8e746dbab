# SPDX-License-Identifier: Apache-2.0
"""What data may look like: one batch or an iterable of batches, as a DataLoader collates them.

A batch is (inputs, targets), each a tensor or any nesting of tensors in tuples, lists and mappings,
or a mapping, which is both. Where two entries could also be two batches, a tuple is one batch and a
list is two, unless the sizes, dtypes or keys of the tensors allow one reading only. Of what Hesse
makes itself, a `BatchList`, there is one reading.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hesse.data.trees import named_tensors, tensors
from hesse.errors import DataError, kind_of


class BatchList(list):
    """Batches in a list that is never one batch itself."""


def as_batches(data: Any) -> Iterable[Any]:
    """The batches, as something that can be iterated over many times."""
    if isinstance(data, BatchList):
        return data
    if isinstance(data, Mapping) or is_one_batch(data):
        return [data]
    if isinstance(data, Dataset):
        raise DataError(
            expected="batches of examples",
            got=f"a data set ({type(data).__name__}), which has single examples",
            remedy="Give torch.utils.data.DataLoader(dataset, batch_size=256).",
        )
    if isinstance(data, Tensor) or not isinstance(data, Iterable):
        raise _unknown_form(data, "data")
    _check_loader(data)
    return list(data) if isinstance(data, Iterator) else data


def inputs_and_targets(batch: Any) -> tuple[Any, Any]:
    """The inputs and the targets of one batch."""
    if isinstance(batch, Mapping):
        return batch, batch
    if _has_two_entries(batch) and _is_known(batch[0]):
        return batch[0], batch[1]
    raise _unknown_form(batch, "a batch")


def batch_of(inputs: Any, targets: Any) -> Any:
    """The batch of which `inputs_and_targets` makes these."""
    is_mapping = inputs is targets and isinstance(inputs, Mapping)
    return inputs if is_mapping else (inputs, targets)


def is_one_batch(data: Any) -> bool:
    """Whether this is (inputs, targets), not two batches.

    >>> x, y = torch.zeros(4, 2), torch.zeros(4)
    >>> is_one_batch((x, y)), is_one_batch(((x, x), (y, y))), is_one_batch([(x, y), (x, y)])
    (True, True, False)
    >>> is_one_batch([[x, x], [y, y]]), is_one_batch(((x, y), (x[:3], y[:3])))
    (True, False)
    """
    if not _has_two_entries(data) or not all(map(_is_known, data)):
        return False
    inputs, targets = data
    if isinstance(inputs, Tensor) or isinstance(targets, Tensor):
        return True
    sizes = _sizes(inputs), _sizes(targets)
    if all(sizes) and not sizes[0] & sizes[1]:
        return False
    # Either reading is possible where the two entries are alike.
    return isinstance(data, tuple) or not _are_alike(inputs, targets)


def _has_two_entries(data: Any) -> bool:
    return isinstance(data, (list, tuple)) and len(data) == 2


def _is_known(part: Any) -> bool:
    """Whether this may be the inputs or the targets of a batch."""
    if isinstance(part, (Tensor, Mapping)):
        return True
    return isinstance(part, (list, tuple)) and next(tensors(part), None) is not None


def _sizes(part: Any) -> set[int]:
    """The first dimensions of the tensors."""
    return {tensor.shape[0] for tensor in tensors(part) if tensor.ndim > 0}


def _are_alike(one: Any, two: Any) -> bool:
    """Whether these may be two batches of one data set.

    Tuples in a list were written down as batches; lists in a list may come from a loader, which
    makes lists of all tuples.
    """
    written = isinstance(one, tuple) and isinstance(two, tuple)
    pairs = list(zip_longest(named_tensors(one), named_tensors(two)))
    return all(a and b and a[0] == b[0] and _is_like(a[1], b[1], written) for a, b in pairs)


def _is_like(a: Tensor, b: Tensor, written: bool) -> bool:
    """Whether the tensors differ by what may differ from batch to batch.

    That is the number of examples, the length of sequences, and the size of images: features or
    channels stay.
    """
    if (a.dtype, a.ndim) != (b.dtype, b.ndim):
        return False
    is_sequence = a.ndim > 2 or not a.dtype.is_floating_point
    if a.shape[1 + is_sequence :] == b.shape[1 + is_sequence :]:
        return True
    return a.ndim > (2 if written else 3) and a.shape[1] == b.shape[1]


def _check_loader(data: Any) -> None:
    shuffles = isinstance(getattr(data, "sampler", None), torch.utils.data.RandomSampler)
    if getattr(data, "drop_last", False) and shuffles:
        raise DataError(
            expected="the same data at every sweep",
            got="a DataLoader with shuffle=True and drop_last=True, which leaves out other "
            "examples each time",
            remedy="Use drop_last=False (ragged batches are weighted), or do not shuffle.",
        )


def _unknown_form(data: Any, what: str) -> DataError:
    size = f" of {len(data)} entries" if isinstance(data, (list, tuple)) else ""
    if _has_two_entries(data):
        data, size = data[0], f" without tensors as the inputs in {kind_of(data)} of 2 entries"
    return DataError(
        expected=f"{what} as a pair (inputs, targets), a mapping, or an iterable of these",
        got=f"{kind_of(data)}{size}",
        remedy=_remedy(data),
    )


def _remedy(data: Any) -> str:
    if isinstance(data, (list, tuple)) and len(data) > 2:
        return (
            "For several inputs give ((x1, x2), targets); batches of a loader can be put "
            "together so: [((x1, x2), y) for x1, x2, y in loader]."
        )
    if isinstance(data, (Tensor, list, tuple)):
        return (
            "Give (inputs, targets); for none but inputs, as in an autoencoder, (inputs, "
            "inputs), or [(x, x) for x in loader]."
        )
    if type(data).__module__ == "numpy":
        return "Convert arrays with torch.as_tensor."
    return (
        "Give (inputs, targets), ((x1, x2), targets) or a mapping; for objects with fields, "
        "[(batch.x, batch.y) for batch in loader]."
    )
