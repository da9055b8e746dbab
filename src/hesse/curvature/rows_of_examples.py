# SPDX-License-Identifier: Apache-2.0
"""Which rows of the likelihoods of a risk belong to which example."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hesse.ad.examples import Axis
from hesse.ad.fisher import Blocks
from hesse.ad.likelihoods.likelihood import Likelihood
from hesse.curvature.likelihood_sum import seen_at
from hesse.data.batches import Batch
from hesse.errors import DataError
from hesse.risk.risk import Risk
from hesse.risk.slices import axes_of_examples, cannot_be_cut
from hesse.vectors.space import Tree


def example_axes(
    risk: Risk, params: Tree, *, needed: bool, blocks: Blocks = "exact"
) -> tuple[Axis, ...] | None:
    """The axis of the examples in each likelihood of the first batch.

    None where the batch cannot be cut, which is an error if the axes are `needed`.

    Raises:
        DataError: the examples influence one another, or are entries of one row.
    """
    likelihoods: Sequence[Likelihood] = ()

    def parameters(params: Tree, batch: Batch) -> list[Tensor]:
        nonlocal likelihoods
        likelihoods = seen_at(risk, params, risk.loss_of(batch), blocks).likelihoods
        return [likelihood.z for likelihood in likelihoods]

    axes = axes_of_examples(parameters, params, risk.data.first_of_several)
    if axes is None and needed:
        raise cannot_be_cut()
    for axis, likelihood in zip(axes or (), likelihoods, strict=False):
        if likelihood.row_dim is not None and axis.dim == likelihood.row_dim:
            raise _shared_row()
    return axes


def _shared_row() -> DataError:
    return DataError(
        expected="outputs whose last dimension holds the entries of one example or place",
        got="outputs whose last dimension counts examples",
        remedy="Give the loss outputs and targets with the examples first, as in "
        "loss(outputs.T, targets.T) where time comes first.",
    )
