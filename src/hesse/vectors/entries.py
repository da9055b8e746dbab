# SPDX-License-Identifier: Apache-2.0
"""A number for each entry of a vector, spelled as users spell it: bounds, scales."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hesse.errors import is_number
from hesse.vectors.arrays import as_tensor
from hesse.vectors.shards import is_sharded
from hesse.vectors.space import Space
from hesse.vectors.trees import fill, map_leaves, match


def entries(value: Any, space: Space, what: str, *, missing: float | None = None) -> Tensor:
    """A new flat vector from a number for all entries, or a vector or tree of numbers.

    In a tree a number is that of a whole leaf.

    Args:
        value: a number, a list of numbers, a tensor, an array, or a tree of such.
        space: where the vector is.
        what: what an error calls the value.
        missing: the number that None stands for; without it None is refused.

    Raises:
        StructureError, ShapeError, DeviceError: the value does not fit.

    >>> x = {"a": torch.zeros(2), "b": torch.zeros(())}
    >>> entries({"a": 3, "b": None}, Space.of(x), "scale", missing=0.0)
    tensor([3., 3., 0.])
    """

    def is_entry(leaf: Any) -> bool:
        return is_number(leaf) or (leaf is None and missing is not None)

    def tensor(leaf: Any) -> Any:
        number: Any = missing if leaf is None else leaf
        return torch.tensor(float(number), dtype=space.dtype) if is_entry(leaf) else leaf

    if isinstance(value, (list, tuple)) and space.template is None and all(map(is_entry, value)):
        value = torch.tensor([float(tensor(entry)) for entry in value], dtype=space.dtype)
    value = as_tensor(tensor(value), space.device)
    if isinstance(value, Tensor):
        value = value.detach().to(space.device, space.dtype)
        if value.ndim == 0:
            return torch.full_like(space.zeros(), float(value))
        if value.ndim == 1 and not space.is_point(value):
            return space.check_vector(value, what=what).clone()
    leaves = list(match(space.template, map_leaves(tensor, value), what, space.device))
    numbers = [leaf.ndim == 0 and not is_sharded(leaf) for leaf in leaves]
    if space.shards is not None:  # each process fills its part
        empty = space.build(space.split(space.zeros()))
        given = zip(leaves, match(space.template, empty, what, space.device), numbers, strict=True)
        leaves = [torch.full_like(part, float(leaf)) if n else leaf for leaf, part, n in given]
    else:
        shaped = zip(leaves, space.shapes, numbers, strict=True)
        leaves = [leaf.to(space.device).expand(n) if is_n else leaf for leaf, n, is_n in shaped]
    return space.flatten(fill(space.template, iter(leaves)), what=what).clone()
