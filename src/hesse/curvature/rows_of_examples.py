# SPDX-License-Identifier: Apache-2.0
"""Which rows of a likelihood belong to which example, found out by computing slices of a batch.

The parameters of the likelihoods of two slices must be those of the whole batch side by side, along
one dimension. Where they are not, examples influence one another, as by BatchNorm in train mode,
and one example has no gradient of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hesse.ad.examples import Axis
from hesse.ad.likelihoods import SeenLoss
from hesse.curvature.likelihood_sum import seen_at
from hesse.data.reduction import rounding_tolerance
from hesse.data.slicing import num_examples, split_batch
from hesse.errors import DataError
from hesse.risk.risk import Risk
from hesse.vectors.space import Space, Tree


def example_axes(risk: Risk, params: Tree, *, needed: bool) -> tuple[Axis, ...] | None:
    """The axis of the examples in each likelihood of the first batch.

    None where the batch cannot be cut, which is an error if the axes are `needed`.

    Raises:
        DataError: the examples influence one another.
    """
    batch = risk.data.first
    whole = seen_at(risk, params, risk.loss_of(batch))
    number = num_examples(batch)
    if number == 1:
        return tuple(Axis(-max(1, part.z.ndim)) for part in whole.likelihoods)
    slices = split_batch(batch, lambda *_: 1.0)
    if slices is None or number is None:
        if needed:
            raise DataError(
                expected="a batch whose first dimension counts the examples",
                got="inputs whose first dimensions differ",
                remedy="Give one example in each batch.",
            )
        return None
    # Away from the point, where a layer of zeros could make all rows alike.
    for point in (_near(params), params):
        losses = [seen_at(risk, point, risk.loss_of(part)) for part in (batch, *slices)]
        sizes = [num_examples(part) or 0 for part in slices]
        if all(bool(torch.isfinite(part.z).all()) for loss in losses for part in loss.likelihoods):
            break
    return _axes(losses, sizes)


def _near(params: Tree) -> Tree:
    """The parameters with a little noise, always the same."""
    space, generator = Space.of(params), torch.Generator().manual_seed(0)
    leaves = [leaf.detach() for leaf in space.leaves(params)]
    noise = [torch.randn(leaf.shape, generator=generator).to(leaf) for leaf in leaves]
    return space.build([leaf + 0.05 * part for leaf, part in zip(leaves, noise, strict=True)])


def _axes(losses: Sequence[SeenLoss], sizes: Sequence[int]) -> tuple[Axis, ...]:
    axes = []
    for whole, *parts in zip(*(loss.likelihoods for loss in losses), strict=True):
        axis = _axis(whole.z, [part.z for part in parts], sizes)
        if axis is None:
            raise DataError(
                expected="examples that do not influence one another, so that each has a gradient "
                "of its own",
                got="other outputs for slices of a batch than for the whole",
                remedy="Call model.eval() where BatchNorm is in train mode; give all that the "
                "model takes from a batch as a whole, such as padding to its longest example, with "
                "the data; or use kind='exact' or 'sampled' with per='row'.",
            )
        axes.append(axis)
    return tuple(axes)


def _axis(whole: Tensor, parts: Sequence[Tensor], sizes: Sequence[int]) -> Axis | None:
    """The axis along which the parts, of so many examples each, make the whole."""
    number = sum(sizes)
    for dim in range(-whole.ndim, 0):
        for outer in (True, False):
            axis = Axis(dim, outer=outer)
            if _fits(whole, dim, number) and all(
                part.ndim == whole.ndim and _fits(part, dim, size)
                for part, size in zip(parts, sizes, strict=True)
            ):
                split = [axis.split(p, n) for p, n in zip(parts, sizes, strict=True)]
                wanted = axis.split(whole, number)
                if _is_joined(wanted, split, dim - 1):
                    return axis
    return None


def _fits(z: Tensor, dim: int, number: int) -> bool:
    return z.shape[dim] % number == 0


def _is_joined(whole: Tensor, parts: Sequence[Tensor], dim: int) -> bool:
    shapes = {tuple(n for d, n in enumerate(p.shape, -p.ndim) if d != dim) for p in (whole, *parts)}
    if len(shapes) > 1:
        return False
    error = (torch.cat(list(parts), dim) - whole).abs().max()
    return bool(error <= rounding_tolerance(whole.dtype) * whole.abs().max())
