# SPDX-License-Identifier: Apache-2.0
"""Sets of entries of a vector: indices, a mask, or a tree of masks like the user's vectors.

Of vectors that are sharded indices are places in the whole vector, the same in all processes; of a
mask each process has its part, as of a vector.
"""

from __future__ import annotations

import zlib
from numbers import Number
from typing import Any

import torch
from torch import Tensor

from hesse.errors import ArgumentError, DtypeError, ShapeError, StructureError
from hesse.ranks import alike
from hesse.vectors.arrays import as_tensor
from hesse.vectors.raw import raw_bytes
from hesse.vectors.space import Space
from hesse.vectors.trees import match, subscript

_EXPECTED = "index to be indices of entries, a mask of shape (n,), or a tree of masks like x"


def entries(space: Space, index: Any) -> Tensor:
    """The indices of a set of entries of a flat vector, in the order given; of a mask ascending.

    Of sharded vectors those in the whole vector: one all-reduce, and of a mask an all-gather.

    >>> entries(Space.flat(4), [2, -4]), entries(Space.flat(2), torch.tensor([False, True]))
    (tensor([2, 0]), tensor([1]))
    """
    with alike(None if space.shards is None else space.ranks):
        given = _as_tensor(index, space.device)
        mask = _mask(space, given)
        if mask is None:
            chosen = _in_range(given, space.n).to(space.device)
        else:
            chosen = mask.to(space.device).nonzero()[:, 0]
    if space.shards is not None:
        chosen = _of_all(space, chosen, is_mask=mask is not None)
    return _not_empty(chosen)


def _of_all(space: Space, chosen: Tensor, *, is_mask: bool) -> Tensor:
    """The indices in the whole vector, in all processes."""
    assert space.ranks is not None
    code = -1 if is_mask else zlib.crc32(raw_bytes(chosen.cpu()).numpy().tobytes())
    space.ranks.check_same("index", code, "Give all ranks one list of indices, or each its mask.")
    if not is_mask:
        return chosen
    return space.sharers.concatenated(space.positions[chosen]).sort().values


def _mask(space: Space, given: Any) -> Tensor | None:
    """The mask of a flat vector that is given; None for indices."""
    if not isinstance(given, Tensor) or (given.dtype is torch.bool and space.is_point(given)):
        return _flat_mask(space, given)
    if given.ndim != 1:
        raise ShapeError(
            expected=_EXPECTED,
            got=f"a tensor of shape {tuple(given.shape)}",
            remedy="Give one list of indices; of a mask .reshape(-1).",
        )
    return _of_length(given, space.size) if given.dtype is torch.bool else None


def _as_tensor(index: Any, device: torch.device) -> Any:
    """A tensor of numbers that are listed; any other tree as it is."""
    if isinstance(index, range) or (
        isinstance(index, (list, tuple)) and all(isinstance(i, Number) for i in index)
    ):
        numbers = list(index)
        return torch.tensor(numbers) if numbers else torch.empty(0, dtype=torch.long)
    return as_tensor(index, device)


def _flat_mask(space: Space, tree: Any) -> Tensor:
    """The mask (n,) of a tree of masks."""
    leaves = list(match(space.template, tree, "index", space.device))
    if space.shards is not None:
        labels = [f"index{subscript(name)}" for name in space.names]
        leaves = space.shards.parts(list(zip(labels, leaves, strict=True)))
    for name, shape, leaf in zip(space.names, space.shapes, leaves, strict=True):
        if leaf.dtype is not torch.bool or leaf.shape != shape:
            raise StructureError(
                expected=f"index{subscript(name)} to be a mask, torch.bool of shape {tuple(shape)}",
                got=f"{leaf.dtype} of shape {tuple(leaf.shape)}",
                remedy="Give a mask for every leaf of x, such as weight != 0.",
            )
    return torch.cat([leaf.reshape(-1) for leaf in leaves])


def _of_length(mask: Tensor, n: int) -> Tensor:
    if len(mask) != n:
        raise ShapeError(
            expected=f"a mask of shape ({n},), one entry for each of the operator",
            got=f"shape {tuple(mask.shape)}",
            remedy="For indices give integers instead.",
        )
    return mask


def _in_range(index: Tensor, n: int) -> Tensor:
    """Different indices in 0 ... n - 1; negative ones count from the end."""
    if index.dtype.is_floating_point or index.is_complex():
        raise DtypeError(
            expected=_EXPECTED,
            got=f"numbers of dtype {index.dtype}",
            remedy="Convert indices with .long(), a mask with .bool().",
        )
    if len(index) and not bool(((index >= -n) & (index < n)).all()):
        raise ArgumentError(
            expected=f"indices from {-n} to {n - 1}",
            got=f"indices from {int(index.min())} to {int(index.max())}",
            remedy="Count entries of the flat vector, x.domain.flatten(tree), from 0.",
        )
    chosen = torch.where(index < 0, index + n, index).long()
    if len(chosen.unique()) < len(chosen):
        raise ArgumentError(
            expected="different indices",
            got=f"{len(chosen)} indices of {len(chosen.unique())} entries",
            remedy="Give index.unique(): a matrix with an equal row twice is singular.",
        )
    return chosen


def _not_empty(index: Tensor) -> Tensor:
    if len(index) == 0:
        raise ArgumentError(
            expected="an index of at least one entry",
            got="none",
            remedy="Leave out the empty operator.",
        )
    return index
