# SPDX-License-Identifier: Apache-2.0
"""Nestings of anything: the mappings, lists and tuples that users put data into.

Unlike the trees of `hesse.vectors` they may hold strings, numbers and other objects.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor


def tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors of a tree, in order."""
    return (tensor for _, tensor in named_tensors(tree))


def named_tensors(tree: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a tree with the keys that lead to them; positions in a list are not named.

    >>> import torch
    >>> [name for name, _ in named_tensors({"x": [torch.ones(1), 2], "y": torch.ones(1)})]
    ["['x']", "['y']"]
    """
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, Mapping):
        for key, child in tree.items():
            yield from named_tensors(child, f"{name}[{key!r}]")
    elif isinstance(tree, (list, tuple)):
        for child in tree:
            yield from named_tensors(child, name)


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The tree with `function` applied to its tensors; other leaves stay."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: map_tensors(function, child) for key, child in tree.items()}
    if isinstance(tree, (list, tuple)):
        children = [map_tensors(function, child) for child in tree]
        return type(tree)(*children) if hasattr(tree, "_fields") else type(tree)(children)
    return tree


def concatenated(one: Any, two: Any, sizes: tuple[int, int]) -> Any:
    """Two trees of some examples each as one tree of all; raises ValueError if they do not fit.

    Tensors without a first dimension that counts the examples must be equal in both.

    >>> import torch
    >>> concatenated({"x": torch.zeros(1, 2), "n": 3}, {"x": torch.ones(2, 2), "n": 3}, (1, 2))
    {'x': tensor([[0., 0.],
            [1., 1.],
            [1., 1.]]), 'n': 3}
    """
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return _concatenated_tensors(one, two, sizes)
    if type(one) is not type(two):
        raise ValueError("two trees of different types")
    if isinstance(one, MutableMapping):
        result = copy.copy(one)  # of its own type, whose entries may be attributes too
        for key in one:
            result[key] = concatenated(one[key], two[key], sizes)
        return result
    if isinstance(one, (list, tuple)):
        children = [concatenated(a, b, sizes) for a, b in zip(one, two, strict=True)]
        return type(one)(*children) if hasattr(one, "_fields") else type(one)(children)
    if dataclasses.is_dataclass(one):
        result = copy.copy(one)
        for field in dataclasses.fields(one):
            children = getattr(one, field.name), getattr(two, field.name)
            object.__setattr__(result, field.name, concatenated(*children, sizes))
        return result
    if not one == two:
        raise ValueError("two leaves that differ")
    return one


def _concatenated_tensors(one: Tensor, two: Tensor, sizes: tuple[int, int]) -> Tensor:
    if one.ndim and two.ndim and one.shape[1:] == two.shape[1:]:
        (count, rest), (other_count, other_rest) = (
            divmod(tensor.shape[0], size) for tensor, size in zip((one, two), sizes, strict=True)
        )
        if count == other_count and rest == other_rest == 0:
            return torch.cat([one, two])
    if not torch.equal(one, two):
        raise ValueError("two tensors that do not count examples and differ")
    return one


def flatten(tree: Any) -> tuple[tuple[Tensor, ...], Hashable]:
    """The tensors of a tree, each once, and a key of all the rest: structure, numbers, strings.

    Trees of equal keys differ in the entries of their tensors only. The key is None for a tree with
    objects that may hide tensors.

    >>> import torch
    >>> x = torch.ones(1)
    >>> flatten({"a": x, "b": [x, 2]})
    ((tensor([1.]),), "{'a': ('tensor', 0), 'b': [('tensor', 0), 2]}")
    """
    found: dict[int, tuple[int, Tensor]] = {}
    hides_tensors = False

    def describe(leaf: Any) -> Any:
        nonlocal hides_tensors
        if isinstance(leaf, Tensor):
            return "tensor", found.setdefault(id(leaf), (len(found), leaf))[0]
        hides_tensors |= not (leaf is None or isinstance(leaf, (bool, int, float, str, bytes)))
        return leaf

    key = repr(_structure(tree, describe))
    return tuple(leaf for _, leaf in found.values()), None if hides_tensors else key


def _structure(tree: Any, describe: Callable[[Any], Any]) -> Any:
    if isinstance(tree, Mapping):
        return {key: _structure(child, describe) for key, child in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_structure(child, describe) for child in tree]
    return describe(tree)
