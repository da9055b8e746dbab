# SPDX-License-Identifier: Apache-2.0
"""Where the examples are in tensors that a model and a loss compute, found by slices of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hesse.ad.examples import Axis, find_axis
from hesse.data.batches import Batch
from hesse.data.reduction import rounding_tolerance
from hesse.data.slicing import num_examples, slice_batch
from hesse.errors import DataError, FunctionError, NonFiniteError
from hesse.risk.arguments import explaining
from hesse.risk.nearby import evaluated_nearby
from hesse.risk.substitution import Substitution
from hesse.vectors.space import Tree

Rows = Callable[[Tree, Batch], list[Tensor]]
"""(params, batch) -> tensors with rows of the examples."""


def axes_of_examples(rows: Rows, params: Tree, batch: Batch) -> tuple[Axis, ...] | None:
    """The axis of the examples in each tensor; None where the batch cannot be cut.

    Raises:
        DataError: the tensors of slices of the batch are not those of the whole side by side.
    """
    number = num_examples(batch)
    if number is None:
        return None
    if number == 1:
        with explaining(params, batch):
            alone = rows(params, batch)
        if any(part.ndim == 0 for part in alone):
            raise _not_side_by_side("outputs without a dimension for a single example")
        return tuple(Axis(-part.ndim) for part in alone)
    # Two examples at least, since some models squeeze the dimension of a single one.
    cut = max(1, number // 3, min(2, number // 2))
    slices, dtypes = slice_batch(batch, [0, cut, number], lambda *_: 1.0), set[torch.dtype]()

    def detached(point: Tree, part: Batch) -> list[Tensor]:
        with explaining(point, part), Substitution(None, {}) as seen:
            found = [t.detach() for t in rows(point, part)]
        dtypes.update(seen.dtypes, (t.dtype for t in found))
        return found

    def evaluate(point: Tree) -> list[list[Tensor]]:
        whole = detached(point, batch)
        try:
            return [whole, *(detached(point, part) for part in slices)]
        except FunctionError as error:  # as of targets that are places in the batch
            raise _not_side_by_side(f"slices of a batch that fail: {error.got}") from error

    # Away from the point, where a layer of zeros could make all rows alike.
    _, (whole, *parts) = evaluated_nearby(evaluate, params, _are_finite)
    if any(bool(t.isnan().any()) for t in whole):
        raise NonFiniteError(
            expected="outputs and losses of examples that are numbers",
            got="NaN for a batch",
            remedy="Check the parameters and the data for NaN, and the model for a domain error.",
        )
    rtol = max(map(rounding_tolerance, dtypes), default=0.0)
    return _axes(whole, parts, [num_examples(part) or 0 for part in slices], rtol)


def _are_finite(lists: Sequence[Sequence[Tensor]]) -> bool:
    return all(bool(torch.isfinite(t).all()) for each in lists for t in each)


def _axes(
    whole: Sequence[Tensor], parts: Sequence[Sequence[Tensor]], sizes: Sequence[int], rtol: float
) -> tuple[Axis, ...]:
    """The axes, within `rtol`: rounding is that of the coarsest dtype that was computed in."""
    axes = []
    for k, total in enumerate(whole):
        axis = find_axis(total, [part[k] for part in parts], sizes, rtol)
        if axis is None:
            raise _not_side_by_side("other outputs for slices of a batch than for the whole")
        axes.append(axis)
    return tuple(axes)


def _not_side_by_side(got: str) -> DataError:
    return DataError(
        expected="examples that do not influence one another, so that each has a loss and "
        "a gradient of its own",
        got=got,
        remedy="Call model.eval() where BatchNorm is in train mode; give all that the "
        "model takes from a batch as a whole, such as padding to its longest example, with "
        "the data; write squeeze(-1) for squeeze(), which takes the dimension of a single example "
        "too. Exact Fisher matrices and kind='sampled', per='row' take any model.",
    )


def cannot_be_cut() -> DataError:
    """The error where the rows of examples are needed and the batch has none."""
    return DataError(
        expected="a batch whose first dimension counts the examples",
        got="inputs whose first dimensions differ",
        remedy="Give one example in each batch.",
    )
