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
from hesse.errors import DataError
from hesse.vectors.space import Space, Tree

Rows = Callable[[Tree, Batch], list[Tensor]]
"""(params, batch) -> tensors with rows of the examples."""


def axes_of_examples(rows: Rows, params: Tree, batch: Batch) -> tuple[Axis, ...] | None:
    """The axis of the examples in each tensor; None where the batch cannot be cut.

    Raises:
        DataError: the tensors of slices of the batch are not those of the whole side by side.
    """
    number = num_examples(batch)
    if number == 1:
        return tuple(Axis(-max(1, part.ndim)) for part in rows(params, batch))
    if number is None:
        return None
    # Two examples at least, since some models squeeze the dimension of a single one.
    cut = max(1, number // 3, min(2, number // 2))
    slices = slice_batch(batch, [0, cut, number], lambda *_: 1.0)
    # Away from the point, where a layer of zeros could make all rows alike.
    for point in (_near(params), params):
        whole, *parts = ([t.detach() for t in rows(point, part)] for part in (batch, *slices))
        if all(bool(torch.isfinite(t).all()) for each in (whole, *parts) for t in each):
            break
    return _axes(whole, parts, [num_examples(part) or 0 for part in slices])


def _near(params: Tree) -> Tree:
    """The parameters with a little noise, always the same."""
    space, generator = Space.of(params), torch.Generator().manual_seed(0)
    leaves = [leaf.detach() for leaf in space.leaves(params)]
    noise = [torch.randn(leaf.shape, generator=generator).to(leaf) for leaf in leaves]
    return space.build([leaf + 0.05 * part for leaf, part in zip(leaves, noise, strict=True)])


def _axes(
    whole: Sequence[Tensor], parts: Sequence[Sequence[Tensor]], sizes: Sequence[int]
) -> tuple[Axis, ...]:
    axes = []
    for k, total in enumerate(whole):
        rtol = rounding_tolerance(total.dtype)
        axis = find_axis(total, [part[k] for part in parts], sizes, rtol)
        if axis is None:
            raise DataError(
                expected="examples that do not influence one another, so that each has a loss and "
                "a gradient of its own",
                got="other outputs for slices of a batch than for the whole",
                remedy="Call model.eval() where BatchNorm is in train mode; give all that the "
                "model takes from a batch as a whole, such as padding to its longest example, with "
                "the data. Exact Fisher matrices and kind='sampled', per='row' take any model.",
            )
        axes.append(axis)
    return tuple(axes)


def cannot_be_cut() -> DataError:
    """The error where the rows of examples are needed and the batch has none."""
    return DataError(
        expected="a batch whose first dimension counts the examples",
        got="inputs whose first dimensions differ",
        remedy="Give one example in each batch.",
    )
