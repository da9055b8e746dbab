# SPDX-License-Identifier: Apache-2.0
r"""Whether the losses of batches combine to the loss of the whole, tried on two parts of a batch.

$$ \ell(X) = \frac{w_1\, \ell(X_1) + w_2\, \ell(X_2)}{w_1 + w_2}, \qquad \text{or } \ell(X_1) +
\ell(X_2) \text{ for a loss that adds up} $$

It fails for class weights, for a mean over tokens of which some are padding, and for a loss that
couples examples. A batch that cannot be cut cannot be tried: the user must say what it weighs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hesse.data.batches import Batch, Batches, examples, split_batch
from hesse.errors import DataError, HesseError

_CALL = "hesse.Risk(model, loss, data)"


def tolerance(value: Tensor) -> float:
    """By how much, relatively, a loss may differ that is computed in another order."""
    return min(2e2 * torch.finfo(value.dtype).eps ** 0.75, 0.1)


def check_average(
    loss: Callable[[Batch], Tensor], whole: Tensor, batch: Batch, data: Batches, *, mean: bool
) -> None:
    """Raise unless the losses of two parts of a batch of the data combine to that of the whole."""
    parts = _parts(batch, data, mean=mean)
    if parts is None:
        return
    try:
        values = [float(loss(part)) for part in parts]
    except (HesseError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a model says to a part of a graph
        if mean:
            _require_weight(data, f"a model that fails on a part of one: {error}", error)
        return
    total = sum(part.weight * v if mean else v for part, v in zip(parts, values, strict=True))
    combined = total / sum(part.weight for part in parts) if mean else total
    if abs(combined - float(whole)) > tolerance(whole) * max(abs(float(whole)), abs(combined)):
        raise _does_not_combine(combined, float(whole), mean=mean)


def _parts(batch: Batch, data: Batches, *, mean: bool) -> list[Batch] | None:
    """Two parts, if the batch can be cut along what its loss averages over."""
    parts = split_batch(batch, data.weigh)
    if parts is None:
        if mean and examples(batch) is None:
            _require_weight(data, "inputs whose first dimensions differ")
        return None
    weight = sum(part.weight for part in parts)
    along = abs(weight - batch.weight) <= 1e-9 * weight
    return parts if along or data.is_cut or not mean else None


def _require_weight(data: Batches, got: str, cause: Exception | None = None) -> None:
    if data.weight is None:
        raise DataError(
            _CALL,
            expected="several batches whose first dimension counts examples, so that parts of one "
            "can be compared with the whole; or weight=",
            got=got,
            remedy="Say what a loss averages over with weight=lambda inputs, targets: ..., as "
            "len(targets) for graphs whose loss is a mean over their nodes.",
        ) from cause


def _does_not_combine(combined: float, whole: float, *, mean: bool) -> DataError:
    return DataError(
        _CALL,
        expected="batches whose losses combine to the loss of the whole: the "
        + ("weighted mean" if mean else "sum")
        + f" over two parts of the first batch is {combined:.6g}",
        got=f"{whole:.6g} for the batch itself",
        remedy="If the loss adds up over examples, say reduction='sum'; if it averages over "
        "something else (tokens that are not padding, class weights), say how much with "
        "weight=lambda inputs, targets: ...; where the first dimension counts no examples (time "
        "comes first), let weight count what is along another; a loss that couples examples needs "
        "all data in one batch, and no memory_budget that cuts it.",
    )
