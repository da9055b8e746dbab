# SPDX-License-Identifier: Apache-2.0
"""Which rows of the likelihoods of a risk belong to which example."""

from __future__ import annotations

from torch import Tensor

from hesse.ad.examples import Axis
from hesse.curvature.likelihood_sum import seen_at
from hesse.data.batches import Batch
from hesse.risk.risk import Risk
from hesse.risk.slices import axes_of_examples, cannot_be_cut
from hesse.vectors.space import Tree


def example_axes(risk: Risk, params: Tree, *, needed: bool) -> tuple[Axis, ...] | None:
    """The axis of the examples in each likelihood of the first batch.

    None where the batch cannot be cut, which is an error if the axes are `needed`.

    Raises:
        DataError: the examples influence one another.
    """

    def parameters(params: Tree, batch: Batch) -> list[Tensor]:
        likelihoods = seen_at(risk, params, risk.loss_of(batch)).likelihoods
        return [likelihood.z for likelihood in likelihoods]

    axes = axes_of_examples(parameters, params, risk.data.first)
    if axes is None and needed:
        raise cannot_be_cut()
    return axes
