# SPDX-License-Identifier: Apache-2.0
"""Trees of tensors: walk them, rebuild them, match one against another.

torch has a private module for this (torch.utils._pytree); these few functions need no registry.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy
import torch
from torch import Tensor

from hesse.errors import StructureError, kind_of
from hesse.vectors.arrays import as_tensor

Tree = Any
"""A tensor, or a nesting of dicts, lists, tuples and namedtuples whose leaves are tensors.

A NumPy array may stand for a tensor.
"""


def _children(tree: Tree) -> list[tuple[str, Tree]] | None:
    """Named children of a container, None for anything else."""
    if tree is None or isinstance(tree, Tensor):  # most are; an abstract class takes its time
        return None
    if isinstance(tree, Mapping):
        return [(str(key), tree[key]) for key in tree]
    if isinstance(tree, (list, tuple)):
        fields = getattr(tree, "_fields", range(len(tree)))
        return [(str(name), child) for name, child in zip(fields, tree, strict=True)]
    return None


def walk(tree: Tree, what: str, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """(path, tensor) for every leaf; raises StructureError for a leaf that is not a tensor."""
    tree = as_tensor(tree)
    if isinstance(tree, Tensor):
        yield path, tree
        return
    children = _children(tree)
    if children is None:
        raise StructureError(
            expected=f"{what}{subscript(path)} to be a tensor or a NumPy array, or a dict, list, "
            "tuple or namedtuple of such",
            got=f"{type(tree).__module__}.{type(tree).__name__}",
            remedy="Convert numbers with torch.tensor; give dict(model.named_parameters()) for a "
            "model.",
        )
    for name, child in children:
        yield from walk(child, what, f"{path}.{name}" if path else name)


def is_of_arrays(tree: Tree) -> bool:
    """Whether all leaves are NumPy arrays, and there is one.

    >>> is_of_arrays({"w": numpy.ones(2)}), is_of_arrays([torch.ones(2)]), is_of_arrays([])
    (True, False, False)
    """
    children = _children(tree)
    if children is None:
        return isinstance(tree, numpy.ndarray)
    return bool(children) and all(is_of_arrays(child) for _, child in children)


def map_leaves(function: Callable[[Tree], Tree], tree: Tree) -> Tree:
    """The tree with `function` applied to everything that is not a container."""
    children = _children(tree)
    if children is None:
        return function(tree)
    return _like(tree, [map_leaves(function, child) for _, child in children])


def fill(template: Tree, leaves: Iterator[Tensor]) -> Tree:
    """A tree like `template` with these leaves, in order."""
    return map_leaves(lambda _: next(leaves), template)


def _like(tree: Tree, children: list[Tree]) -> Tree:
    """A container of the type of `tree` around `children`."""
    if isinstance(tree, Mapping):
        pairs = zip(tree, children, strict=True)
        return OrderedDict(pairs) if type(tree) is OrderedDict else dict(pairs)
    if hasattr(tree, "_fields"):
        return type(tree)(*children)
    return type(tree)(children) if type(tree) in (list, tuple) else list(children)


def match(
    template: Tree, tree: Tree, what: str, device: torch.device, path: str = ""
) -> Iterator[Tensor]:
    """The leaves of `tree` in the order of `template`, or an error that says where they differ.

    Arrays become tensors on `device`.
    """
    expected, given = _children(template), _children(tree)
    tree = as_tensor(tree, device)
    if expected is None and isinstance(tree, Tensor):
        yield tree
    elif expected is not None and _same_container(template, tree):
        by_name = dict(given or []) if isinstance(template, Mapping) else None
        for i, (name, child) in enumerate(expected):
            below = tree[i] if by_name is None else by_name[name]
            yield from match(child, below, what, device, f"{path}.{name}" if path else name)
    else:
        raise _mismatch(template, tree, f"{what}{subscript(path)}")


def _same_container(template: Tree, tree: Tree) -> bool:
    """Mappings match by their keys, in any order; sequences of any type match by their length."""
    if isinstance(template, Mapping):
        return isinstance(tree, Mapping) and set(map(str, tree)) == set(map(str, template))
    return isinstance(tree, (list, tuple)) and len(tree) == len(template)


def _mismatch(template: Tree, tree: Tree, label: str) -> StructureError:
    """The error for a tree whose structure at `label` is not that of x."""
    if _children(template) is None:
        expected, details = f"{label} to be a tensor, like x", ""
    else:
        expected = f"{label} to be {kind_of(template)} of {len(template)} entries, like x"
        details = _difference(template, tree) if isinstance(tree, Mapping) else ""
    size = f" of {len(tree)} entries" if isinstance(tree, (list, tuple)) else ""
    return StructureError(
        expected=expected,
        got=f"{kind_of(tree)}{size}{details}",
        remedy="Give a tree with the structure of x.",
    )


def _difference(template: Mapping, tree: Mapping) -> str:
    """Which keys are missing and which are unexpected."""
    missing = [str(name) for name in template if name not in tree]
    extra = [str(name) for name in tree if name not in template]
    words = [
        f"{word} {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}"
        for word, names in (("missing", missing), ("unexpected", extra))
        if names
    ]
    return f" ({'; '.join(words)})"


def subscript(path: str) -> str:
    """How a message names the leaf at `path`: "['path']", or nothing for the whole tree."""
    return f"['{path}']" if path else ""
