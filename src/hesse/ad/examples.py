# SPDX-License-Identifier: Apache-2.0
"""`Examples`: which rows of the likelihoods of a batch belong to which example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.ad.likelihoods.categorical import over_total
from hesse.ad.likelihoods.likelihood import Likelihood
from hesse.errors import DataError


@dataclass(frozen=True)
class Axis:
    """The dimension of z, from the end, that counts the examples.

    It may count more than them: (batch, sequence) as one dimension, in either order.

    >>> Axis(-1, outer=False).split(torch.arange(4), 2)         # two places of two examples
    tensor([[0, 2],
            [1, 3]])
    """

    dim: int
    outer: bool = True
    """Whether the examples come before what shares their dimension."""

    def split(self, rows: Tensor, examples: int) -> Tensor:
        """The rows with the examples in a dimension of their own, at `dim - 1`."""
        if rows.ndim < -self.dim or rows.shape[self.dim] % examples:
            raise DataError(
                expected=f"outputs with {examples} examples in dimension {self.dim}, where those "
                "of other batches have them",
                got=f"outputs of shape {tuple(rows.shape)}",
                remedy="Write squeeze(-1) for squeeze(), which takes the dimension of a single "
                "example too; give the outputs of every batch the same form.",
            )
        if self.outer:
            return rows.unflatten(self.dim, (examples, -1))
        return rows.unflatten(self.dim, (-1, examples)).transpose(self.dim - 1, self.dim)

    def joined(self, split: Tensor) -> Tensor:
        """The inverse of `split`."""
        split = split if self.outer else split.transpose(self.dim - 1, self.dim)
        return split.flatten(self.dim - 1, self.dim)

    def spread(self, numbers: Tensor, rows: Tensor) -> Tensor:
        """A number for each example in the place of each of its rows."""
        split = self.split(rows, len(numbers))
        return self.joined(_spread(self, numbers, split)).to(rows.dtype)


def find_axis(
    whole: Tensor, parts: Sequence[Tensor], sizes: Sequence[int], rtol: float
) -> Axis | None:
    """The axis along which the parts, of so many examples each, make the whole; None if none does.

    >>> rows = torch.arange(6.0)
    >>> find_axis(rows, [rows[::3], rows.view(2, 3)[:, 1:].flatten()], [1, 2], 0.0)
    Axis(dim=-1, outer=False)
    """
    number = sum(sizes)
    for dim in range(-whole.ndim, 0):
        for axis in (Axis(dim), Axis(dim, outer=False)):
            pairs = [(whole, number), *zip(parts, sizes, strict=True)]
            if all(t.ndim == whole.ndim and t.shape[dim] % n == 0 for t, n in pairs):
                total, *split = (axis.split(t, n) for t, n in pairs)
                if _is_joined(total, split, dim - 1, rtol):
                    return axis
    return None


def _is_joined(whole: Tensor, parts: Sequence[Tensor], dim: int, rtol: float) -> bool:
    shapes = {tuple(n for d, n in enumerate(p.shape, -p.ndim) if d != dim) for p in (whole, *parts)}
    if len(shapes) > 1:
        return False
    joined = torch.cat(list(parts), dim)
    other = joined != whole  # places masked by an infinity are the same
    size = torch.where(whole.isinf(), 0.0, whole).abs().max()
    return bool((torch.where(other, joined - whole, 0.0).abs() <= rtol * size).all())


@dataclass(frozen=True)
class Examples:
    """The number of examples of a batch, and their axis in each likelihood.

    Args:
        number: of the examples.
        axes: one for each likelihood.
        average: whether the loss averages over its rows, so that an example weighs as its rows
            count; otherwise every example weighs one.
        given: what the examples weigh instead, (number,).
    """

    number: int
    axes: tuple[Axis, ...]
    average: bool = True
    given: Tensor | None = None

    def summed(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """In the place of each row the sum over all rows of its example, in all likelihoods.

        The rows may have one leading dimension more than those of the likelihoods.
        """
        split = [axis.split(t, self.number) for axis, t in zip(self.axes, rows, strict=True)]
        sums = [self._sums(axis, t) for axis, t in zip(self.axes, split, strict=True)]
        total = torch.stack(sums).sum(0)
        return [
            axis.joined(_spread(axis, total, t)) for axis, t in zip(self.axes, split, strict=True)
        ]

    def weights(self, likelihoods: Sequence[Likelihood]) -> Tensor:
        """The weights of the examples in the mean, shape (number,)."""
        if self.given is not None:
            return self.given
        shares = []
        for axis, likelihood in zip(self.axes, likelihoods, strict=True):
            counts = likelihood.counts.expand(likelihood.z.shape)
            split = axis.split(counts[None], self.number)
            share = self._sums(axis, split)[0]
            shares.append(over_total(share, share))
        return torch.stack(shares).mean(0) if self.average else torch.ones_like(shares[0])

    def weights_of_rows(self, likelihoods: Sequence[Likelihood]) -> list[Tensor]:
        """In the place of each row the weight of its example, shaped like the rows."""
        weight, result = self.weights(likelihoods), []
        for axis, likelihood in zip(self.axes, likelihoods, strict=True):
            rows = likelihood.row_inner(likelihood.parameters, likelihood.parameters)[None]
            result.append(axis.joined(_spread(axis, weight, axis.split(rows, self.number)))[0])
        return result

    def _sums(self, axis: Axis, split: Tensor) -> Tensor:
        """The sums of the rows of each example, shape (leading, examples)."""
        return split.movedim(axis.dim - 1, 1).flatten(2).sum(2) if split.ndim > 2 else split


def _spread(axis: Axis, numbers: Tensor, like: Tensor) -> Tensor:
    """Numbers (examples,) or (leading, examples) in the place of the rows of a split tensor."""
    shape = [1] * like.ndim
    shape[axis.dim - 1] = numbers.shape[-1]
    if numbers.ndim > 1:
        shape[0] = numbers.shape[0]
    leading = numbers.shape[0] if numbers.ndim > 1 else like.shape[0]
    return numbers.reshape(shape).expand(leading, *like.shape[1:])
