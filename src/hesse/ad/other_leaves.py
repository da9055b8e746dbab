# SPDX-License-Identifier: Apache-2.0
"""Leaves of f's graph that are none of x: constants, or x itself reached by another way.

A function may close over trainable tensors that it is not differentiated in, as the energy of atoms
closes over the weights of a network. One that shares its memory with a leaf of x, or its entries,
is most likely that leaf: a penalty over `model.parameters()` where x are the parameters. Its part
of the derivative would be missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hesse.boundary import warn
from hesse.errors import FunctionError


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
