# SPDX-License-Identifier: Apache-2.0
r"""Whether the losses of batches combine to the loss of the whole, tested on parts and on unions.

$$ \ell(X_1 \cup X_2) = \frac{w_1\, \ell(X_1) + w_2\, \ell(X_2)}{w_1 + w_2}, \qquad \text{or }
\ell(X_1) + \ell(X_2) \text{ for a loss that adds up} $$

Two slices of a batch, which the model is called with, show a model or a loss that couples examples.
The first batch together with each other one, of which only the loss is taken, shows weights that
are wrong in some batches only: a mean over tokens of which some are padding, class weights. A batch
that cannot be cut cannot be tested: the user must give its weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hesse.data.batches import Batch, Batches
from hesse.data.slicing import num_examples, split_batch
from hesse.data.trees import concatenated, tensors
from hesse.errors import DataError, HesseError


def rounding_tolerance(dtype: torch.dtype) -> float:
    """The relative difference allowed between two values of a loss summed in different orders."""
    return min(2e2 * torch.finfo(dtype).eps ** 0.75, 0.1)


def agree(one: float, two: float, rtol: float) -> bool:
    """Whether two values are equal up to rounding; what is not finite agrees with its like only."""
    if not (math.isfinite(one) and math.isfinite(two)):
        return one == two or (math.isnan(one) and math.isnan(two))
    return abs(one - two) <= rtol * max(abs(one), abs(two))


# --------------------------------------------------------------------------------------------------
# Two slices of a batch


def check_average(
    loss: Callable[[Batch], Tensor],
    whole: float,
    batch: Batch,
    data: Batches,
    *,
    mean: bool,
    rtol: float,
) -> None:
    """Raise unless the losses of two slices of a batch of the data combine to that of the whole."""
    slices = _slices(batch, data, mean=mean)
    if slices is None:
        return
    slices = [part for part in slices if part.weight > 0.0 or not mean]
    try:
        values = [float(loss(part)) for part in slices]
    except (HesseError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a model of graphs may fail on a slice of one in any way
        if mean:
            _require_weight(data, f"a model that fails on a slice of one: {error}", error)
        return
    combined = _combined([part.weight for part in slices], values, mean=mean)
    if not agree(combined, whole, rtol):
        raise _does_not_combine(combined, whole, "two slices of a batch", batch, mean=mean)


def _combined(weights: list[float], values: list[float], *, mean: bool) -> float:
    if not mean:
        return sum(values)
    total = sum(weights)
    products = (w * v for w, v in zip(weights, values, strict=True))
    return sum(products) / total if total else math.nan


def _slices(batch: Batch, data: Batches, *, mean: bool) -> list[Batch] | None:
    """Two slices, if the batch can be cut along the dimension that its loss averages over."""
    slices = split_batch(batch, data.weigh)
    if slices is None:
        if mean and num_examples(batch) is None:
            _require_weight(data, "inputs whose first dimensions differ")
        return None
    return slices if data.is_cut or not mean or _adds_up(slices, batch) else None


def _adds_up(slices: list[Batch], batch: Batch) -> bool:
    """Whether the weight counts something along the first dimension."""
    weight = sum(part.weight for part in slices)
    return abs(weight - batch.weight) <= 1e-9 * weight


def _require_weight(data: Batches, got: str, cause: Exception | None = None) -> None:
    if data.weight is None and not data.reads_targets:
        raise DataError(
            expected="several batches whose first dimension counts examples, so that slices of one "
            "can be compared with the whole; or weight=",
            got=got,
            remedy="Say what the loss averages over with weight=lambda inputs, targets: ..., such "
            "as len(targets) for graphs whose loss is a mean over their nodes.",
        ) from cause


# --------------------------------------------------------------------------------------------------
# The first batch with each other one


class EvaluatedBatch(NamedTuple):
    """A batch, or several together, with the outputs of the model and the loss."""

    targets: Any
    outputs: Any
    size: int | None
    weight: float
    loss: float


def check_batches(
    evaluate: Callable[[Batch], EvaluatedBatch],
    loss: Callable[[Any, Any], Tensor],
    batches: Iterable[Batch],
    data: Batches,
    *,
    mean: bool,
    rtol: float,
) -> None:
    """Raise unless the loss of the first batch and each other one combines as their weights say.

    The model is called once for each batch; where two batches cannot be concatenated, as with
    sequences of different lengths, twice more for two slices of the later one.
    """
    first = None
    for number, batch in enumerate(batches, start=1):
        if first is None:
            if mean and not _has_additive_weight(batch, data):
                return
            first = evaluate(batch)
            continue
        other = evaluate(batch)
        union = _together(loss, first, other)
        weights, values = [first.weight, other.weight], [first.loss, other.loss]
        combined = _combined(weights, values, mean=mean)
        if union is not None and agree(combined, union.loss, rtol):
            continue
        if mean and union is not None and _is_mean(loss, first, other, union, rtol):
            which = f"batches 1 and {number}"
            raise _does_not_combine(combined, union.loss, which, batch, mean=mean)
        # They do not go together, such as batches of two tasks with a loss of its own each.
        check_average(
            lambda part: torch.tensor(evaluate(part).loss, dtype=torch.float64),
            other.loss, batch, data, mean=mean, rtol=rtol,
        )  # fmt: skip


def _has_additive_weight(batch: Batch, data: Batches) -> bool:
    slices = split_batch(batch, data.weigh)
    return data.weight is None if slices is None else _adds_up(slices, batch)


def _together(
    loss: Callable[[Any, Any], Tensor], one: EvaluatedBatch, two: EvaluatedBatch
) -> EvaluatedBatch | None:
    """Two batches as one; None where they cannot be concatenated."""
    if one.size is None or two.size is None:
        return None
    sizes = one.size, two.size
    try:
        outputs = concatenated(one.outputs, two.outputs, sizes)
        targets = concatenated(one.targets, two.targets, sizes)
        value = float(loss(outputs, targets))
    except (HesseError, torch.OutOfMemoryError):
        raise
    except Exception:  # whatever the loss says to sizes that it does not expect
        return None
    return EvaluatedBatch(targets, outputs, sum(sizes), one.weight + two.weight, value)


def _is_mean(
    loss: Callable[[Any, Any], Tensor],
    one: EvaluatedBatch,
    two: EvaluatedBatch,
    union: EvaluatedBatch,
    rtol: float,
) -> bool:
    """Whether the loss of the union is a mean with some weights: the same ones for 1, 2 and 2."""
    if not math.isfinite(union.loss):
        return False
    if not (math.isfinite(one.loss) and math.isfinite(two.loss)):
        return True  # one of weight zero: 0 / 0
    if agree(union.loss, one.loss, rtol) or agree(union.loss, two.loss, rtol):
        return not agree(one.loss, two.loss, rtol)
    ratio = (one.loss - union.loss) / (union.loss - two.loss)
    twice = _together(loss, union, two)
    if ratio < 0.0 or twice is None:
        return False
    return agree(twice.loss, _combined([1.0, 2.0 * ratio], [one.loss, two.loss], mean=True), rtol)


def _does_not_combine(
    combined: float, whole: float, which: str, batch: Batch, *, mean: bool
) -> DataError:
    return DataError(
        expected="batches whose losses combine to the loss of the whole: the "
        + ("weighted mean" if mean else "sum")
        + f" over {which} is {combined:.6g}",
        got=f"{whole:.6g} for them together",
        remedy="If the loss adds up over examples, give reduction='sum'; if it averages over "
        f"something else, give its count, such as {_line_to_write(batch)}; "
        "where the first dimension does not count examples "
        "(time comes first), let weight count along the one that does; a loss that couples "
        "examples needs all data in one batch, and no memory_budget that cuts it.",
    )


def _line_to_write(batch: Batch) -> str:
    """The likely `weight=` for these targets."""
    marked = [t for t in tensors(batch.targets) if not t.dtype.is_floating_point and t.ndim > 0]
    by_name = isinstance(batch.targets, dict) and "labels" in batch.targets
    targets = 'targets["labels"]' if by_name else "targets"
    if any(bool((t == -100).any()) for t in marked):
        line = f"weight=lambda inputs, targets: ({targets} != -100).sum() for padding of -100"
        shifted = by_name and all(t.ndim == 2 for t in marked)
        return line + (f" ({targets}[:, 1:] if it predicts the next token)" if shifted else "")
    if by_name or (marked and isinstance(batch.targets, Tensor)):
        return (
            f"weight=lambda inputs, targets: class_weights[{targets}].sum() for class weights or "
            f"weight=lambda inputs, targets: ({targets} != ignored).sum() for tokens that are not "
            "padding"
        )
    return "weight=lambda inputs, targets: mask(targets).sum() for the entries that count"
