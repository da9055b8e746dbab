# SPDX-License-Identifier: Apache-2.0
r"""Whether the losses of batches combine to the loss of the whole, tested on two slices of a batch.

$$ \ell(X) = \frac{w_1\, \ell(X_1) + w_2\, \ell(X_2)}{w_1 + w_2}, \qquad \text{or } \ell(X_1) +
\ell(X_2) \text{ for a loss that adds up} $$

The test fails for class weights, for a mean over tokens of which some are padding, and for a loss
that couples examples. A batch that cannot be cut cannot be tested: the user must give its weight.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hesse.data.batches import Batch, Batches
from hesse.data.slicing import num_examples, split_batch
from hesse.errors import DataError, HesseError


def rounding_tolerance(value: Tensor) -> float:
    """The relative difference allowed between two values of a loss summed in different orders."""
    return min(2e2 * torch.finfo(value.dtype).eps ** 0.75, 0.1)


def check_average(
    loss: Callable[[Batch], Tensor], whole: Tensor, batch: Batch, data: Batches, *, mean: bool
) -> None:
    """Raise unless the losses of two slices of a batch of the data combine to that of the whole."""
    slices = _slices(batch, data, mean=mean)
    if slices is None:
        return
    try:
        values = [float(loss(part)) for part in slices]
    except (HesseError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a model of graphs may fail on a slice of one in any way
        if mean:
            _require_weight(data, f"a model that fails on a slice of one: {error}", error)
        return
    total = sum(part.weight * v if mean else v for part, v in zip(slices, values, strict=True))
    combined = total / sum(part.weight for part in slices) if mean else total
    scale = max(abs(float(whole)), abs(combined))
    if abs(combined - float(whole)) > rounding_tolerance(whole) * scale:
        raise _does_not_combine(combined, float(whole), mean=mean)


def _slices(batch: Batch, data: Batches, *, mean: bool) -> list[Batch] | None:
    """Two slices, if the batch can be cut along the dimension that its loss averages over."""
    slices = split_batch(batch, data.weigh)
    if slices is None:
        if mean and num_examples(batch) is None:
            _require_weight(data, "inputs whose first dimensions differ")
        return None
    weight = sum(part.weight for part in slices)
    adds_up = abs(weight - batch.weight) <= 1e-9 * weight
    return slices if adds_up or data.is_cut or not mean else None


def _require_weight(data: Batches, got: str, cause: Exception | None = None) -> None:
    if data.weight is None:
        raise DataError(
            expected="several batches whose first dimension counts examples, so that slices of one "
            "can be compared with the whole; or weight=",
            got=got,
            remedy="Say what the loss averages over with weight=lambda inputs, targets: ..., such "
            "as len(targets) for graphs whose loss is a mean over their nodes.",
        ) from cause


def _does_not_combine(combined: float, whole: float, *, mean: bool) -> DataError:
    return DataError(
        expected="batches whose losses combine to the loss of the whole: the "
        + ("weighted mean" if mean else "sum")
        + f" over two slices of the first batch is {combined:.6g}",
        got=f"{whole:.6g} for the batch itself",
        remedy="If the loss adds up over examples, give reduction='sum'; if it averages over "
        "something else (tokens that are not padding, class weights), give its count with "
        "weight=lambda inputs, targets: ...; where the first dimension does not count examples "
        "(time comes first), let weight count along the one that does; a loss that couples "
        "examples needs all data in one batch, and no memory_budget that cuts it.",
    )
