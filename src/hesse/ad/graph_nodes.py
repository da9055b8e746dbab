# SPDX-License-Identifier: Apache-2.0
"""The nodes of an autograd graph, and those whose second derivative cannot be trusted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import checkpoint

from hesse.errors import FunctionError


class UndifferentiableError(NotImplementedError):
    """The backward pass of a user's `autograd.Function` is a constant to torch, and is none."""


def graph_nodes(*values: Tensor) -> Iterator[Any]:
    """The nodes of the graphs of some tensors, each once."""
    seen: set[Any] = set()
    nodes: list[Any] = [value.grad_fn for value in values]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        yield node
        seen.add(node)
        nodes.extend(below for below, _ in node.next_functions)


def graph_leaves(value: Tensor) -> dict[int, Tensor]:
    """The leaves that require a gradient in the graph of `value`, by their ids."""
    if value.requires_grad and value.is_leaf:
        return {id(value): value}
    return leaves_of(graph_nodes(value))


def check_seen_whole(*values: Tensor) -> None:
    """Raise if the graphs of some values leave out leaves that a part of the function reads.

    A checkpoint with use_reentrant=True makes the graph of its part in `backward()` alone; a
    gradient by `torch.autograd.grad` is then zero for what only this part reads, without an error.
    """
    for node in graph_nodes(*values):
        if getattr(node, "_forward_cls", None) is checkpoint.CheckpointFunction:
            raise _hidden_by_checkpoint()


def _hidden_by_checkpoint() -> FunctionError:
    return FunctionError(
        expected="a function whose graph has all that it reads",
        got="a checkpoint with use_reentrant=True, whose part torch.autograd.grad leaves out",
        remedy="Use torch.utils.checkpoint.checkpoint(..., use_reentrant=False); for a model of "
        'transformers: model.gradient_checkpointing_enable({"use_reentrant": False}).',
    )


# The second derivative of these in their last argument, the input, is zero.
_LINEAR = ("NllLossBackwardBackward", "NllLoss2DBackwardBackward")


def varies(value: Tensor) -> bool:
    """Whether a derivative that was computed depends on a leaf, but for what torch has as zeros."""
    seen: set[Any] = set()
    nodes: list[Any] = [value.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            return True
        below = [node for node, _ in node.next_functions]
        nodes.extend(below[:-1] if node.name().startswith(_LINEAR) else below)
    return False


def leaves_of(nodes: Iterable[Any]) -> dict[int, Tensor]:
    """The leaves among the nodes of a graph, by their ids."""
    leaves = (getattr(node, "variable", None) for node in nodes)
    return {id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor)}


# In the names of functions by which processes communicate, and of their nodes.
AMONG_RANKS = "AmongRanks"

# torch's second derivative of these drops terms, without an error (torch 2.13).
_WRONG_TWICE = {
    "AsStridedScatter": "torch.as_strided_scatter",
    "NativeLayerNorm": "torch.native_layer_norm",
    "SparseCooTensor": "torch.sparse_coo_tensor",
    "SparseCompressedTensor": "torch.sparse_compressed_tensor",
}
_IF_INPUT_IS_FIXED = ("torch.native_layer_norm",)  # and the bias alone varies


def custom_function(value: Tensor, nodes: Iterable[Any] | None = None) -> str | None:
    """The name of an operation in the graph of `value` because of which a product must be checked.

    A user's `autograd.Function`: what its backward pass computes outside torch, in a kernel of its
    own, counts as constant when the gradient is differentiated, and the product is then wrong
    without an error. A pass that is marked `once_differentiable` says so itself, but torch raises
    only if what comes into it has a graph; here it raises always. A few operations of torch
    are no better. `nodes`: those of the graph, where they are known.
    """
    nodes = graph_nodes(value) if nodes is None else nodes
    return next(filter(None, map(_checked_name, nodes)), None)


def _checked_name(node: Any) -> str | None:
    if not isinstance(node, torch.autograd.function.BackwardCFunction):
        kind = type(node)
        name = _wrong(node.name()) if kind.__name__ == _NAMELESS else _wrong_kind(kind)
        return None if name in _IF_INPUT_IS_FIXED and node.next_functions[0][0] else name
    function = getattr(node, "_forward_cls", type(node))
    if function is checkpoint.CheckpointFunction:
        raise _hidden_by_checkpoint()
    if getattr(function, "is_composed", False):
        return None
    code = getattr(getattr(function, "backward", None), "__code__", None)
    if code is not None and code.co_filename == torch.autograd.function.__file__:
        raise UndifferentiableError(
            f"the backward pass of {function.__name__} is marked once_differentiable"
        )
    return function.__name__


# The nodes that C++ has no class of its own for; the others have the name of their class.
_NAMELESS = "CppFunction"


def _wrong(name: str) -> str | None:
    return next((call for key, call in _WRONG_TWICE.items() if name.startswith(key)), None)


@cache
def _wrong_kind(kind: type) -> str | None:
    return _wrong(kind.__name__)


def saved_bytes(outputs: Sequence[Tensor], known: Sequence[Tensor]) -> int:
    """The bytes that the graphs of some tensors hold for their backward pass.

    Memory that several nodes share counts once, that of the `known` tensors not at all.

    >>> x = torch.ones(10, requires_grad=True)
    >>> saved_bytes([x.exp().sin()], [x])            # exp(x), which sin needs too
    40
    """
    storages: dict[int, int] = {}
    for node in graph_nodes(*outputs):
        for tensor in _saved_tensors(node):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    for tensor in known:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def _saved_tensors(node: Any) -> Iterator[Tensor]:
    """What a node saved."""
    for name in _saved_names(type(node)):
        saved = getattr(node, name)
        parts = saved if isinstance(saved, (list, tuple)) else [saved]
        yield from (part for part in parts if isinstance(part, Tensor) and _is_dense(part))


@cache
def _saved_names(kind: type) -> list[str]:
    """The attributes of a kind of node that begin with `_saved_`; those of a user's function."""
    names = [name for name in dir(kind) if name.startswith("_saved_")]
    return [*names, "saved_tensors"] if hasattr(kind, "saved_tensors") else names


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided
