# SPDX-License-Identifier: Apache-2.0
"""Leaves of f's graph that are none of x: constants, or x itself reached by another way.

A function may close over trainable tensors that it is not differentiated in, as the energy of atoms
closes over the weights of a network. One that shares its memory with a leaf of x, or its entries,
is most likely that leaf: a penalty over `model.parameters()` where x are the parameters. Its part
of the derivative would be missing. A leaf of an earlier x of the same f is in the graph if f stores
what it computes, as by `functools.cache`: f(x) is then that of the earlier x in part.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from hesse.boundary import warn
from hesse.errors import FunctionError

_FUNCTION = "hesse_function"
"""The attribute of a leaf with a weak reference to the function that it is a variable of."""


def mark(leaves: Iterable[Tensor], f: Any) -> None:
    """Note that these are leaves of an x at which f is evaluated."""
    try:
        function = weakref.ref(getattr(f, "function", f))
    except TypeError:  # an object that takes no weak reference
        return
    for leaf in leaves:
        setattr(leaf, _FUNCTION, function)


def check_earlier_leaves(leaves: Iterable[Tensor], f: Any, now: Sequence[Tensor] = ()) -> None:
    """Raise if one of the leaves, other than those of x `now`, is of an earlier x of f."""
    function, own = getattr(f, "function", f), set(map(id, now))
    for leaf in leaves:
        reference = getattr(leaf, _FUNCTION, None)
        if reference is not None and reference() is function and id(leaf) not in own:
            raise FunctionError(
                expected="f to compute all that depends on x at every call",
                got=f"an f that stores what it computed from an earlier x, of shape "
                f"{tuple(leaf.shape)}, and reads it at this one",
                remedy="Compute it from the argument at every call, without a cache that outlives "
                "the call (functools.cache, a dict, an attribute), and delete what is stored.",
            )


def check_other_leaves(others: Iterable[Tensor], x: Sequence[Tensor], names: Sequence[str]) -> None:
    """Raise if one of the other leaves is a leaf of x; warn where that is not sure."""
    others = list(others)
    found = {}
    for other in others:
        for leaf, name in zip(x, names, strict=True):
            if _is_alike(other, leaf):
                if other.data_ptr() == leaf.data_ptr():
                    raise _reached(name)
                found[id(other)] = name
    if not found:
        return
    name = next(iter(found.values()))
    if len(found) == len(others):
        raise _reached(name)
    warn(
        f"f depends on a trainable tensor with the entries of {name} that is not computed from x. "
        "It counts as a constant: compute it from x, or use its .detach() to say so."
    )


def _is_alike(other: Tensor, leaf: Tensor) -> bool:
    if (other.shape, other.dtype, other.device) != (leaf.shape, leaf.dtype, leaf.device):
        return False
    if other.data_ptr() == leaf.data_ptr():
        return other.numel() > 0
    with torch.no_grad():  # zeros and ones are in many a place
        varied = other.numel() > 1 and bool((other != other.flatten()[0]).any())
        return varied and torch.equal(other, leaf)


def _reached(name: str) -> FunctionError:
    return FunctionError(
        expected="f to compute all that depends on x from its argument",
        got=f"{name} reached by another way, as through model.parameters() in a penalty, a list "
        "or a closure, where it would count as a constant",
        remedy="Compute it from the argument; with a module, give it to hesse.Risk(model, loss, "
        "data), which replaces its parameters everywhere; for a constant, use its .detach().",
    )
