# SPDX-License-Identifier: Apache-2.0
"""Tensors that a model computes from its parameters once, and stores from one call to the next.

At other parameters they are of the old ones, and where they were computed without gradients they
count as constants: the products of these parameters would be zero. The first call of a trial is
therefore given parameters with a graph. If the graph of a later call leads to them, something was
stored in between, whether in an attribute, a dict, a closure or `functools.cache`. What was stored
before the trial by a call under `no_grad` cannot be told from a constant: there is a warning where
a module has a tensor that may be such, and parameters without influence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hesse.ad.graph_nodes import graph_leaves
from hesse.ad.variables import tracked
from hesse.boundary import warn
from hesse.errors import FunctionError
from hesse.vectors.space import Space, Tree


class FirstParameters:
    """The parameters of a first call, by which what it stores is known again.

    >>> first, stored = FirstParameters({"w": torch.ones(2)}), {}
    >>> def model(params):
    ...     return stored.setdefault("w", params["w"] ** 2).sum()
    >>> with torch.enable_grad():
    ...     _ = model(first.params)
    >>> first.found_in(graph_leaves(model({"w": torch.ones(2)})))
    ['w']
    """

    def __init__(self, params: Tree) -> None:
        space = Space.of(params, what="params")
        self._names = space.names
        self._leaves = tracked(space.leaves(params, what="params"))
        with torch.inference_mode(False), torch.enable_grad():
            # Of their own, since a model may write to them; no leaves, to which it could not.
            copies = [leaf.clone() for leaf in self._leaves]
            for copy in copies:
                copy.retain_grad()  # lest torch warns where a closure looks at .grad
            self.params = space.build(copies)

    def found_in(self, leaves: Mapping[int, Tensor]) -> list[str]:
        """The names of those that are among the leaves of a graph."""
        pairs = zip(self._names, self._leaves, strict=True)
        return [name for name, leaf in pairs if id(leaf) in leaves]

    def check_later(self, leaves: Mapping[int, Tensor], model: Any) -> None:
        """Raise if the graph of a later call has one of these parameters among its leaves."""
        names = self.found_in(leaves)
        if names:
            raise stores(names, place_of(self._leaves, model))

    def look_for_earlier(self, leaves: Mapping[int, Tensor], model: Any) -> None:
        """Warn if a module may have stored something before the call that this graph is of."""
        if not isinstance(model, nn.Module):
            return
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        reached = {*self.found_in(leaves), *frozen}
        unreached = [name for name in self._names if name not in reached]
        place = _where(model, _may_be_computed) if unreached else None
        if place is not None:
            warn(
                f"The loss does not depend on {_listed(unreached)}, and the module has a tensor, "
                f"the attribute {place!r}, that is no buffer. If it was computed from these "
                "parameters, their products are zero: delete it, and compute it at every call. If "
                "it is a constant, register it by register_buffer."
            )


def stores(names: Sequence[str], place: str) -> FunctionError:
    """The error for what a model computed from these parameters and stored at a place."""
    return FunctionError(
        expected="a model that computes all that depends on its parameters at every call",
        got=f"one that stores what it computed from {_listed(names)}{place}, and reads it at the "
        "next call: at other parameters it would be that of the old ones",
        remedy="Compute it in forward at every call, without a cache (functools.cache, "
        "cached_property, `if self.x is None`), and delete what is stored.",
    )


def place_of(leaves: Sequence[Tensor], model: Any) -> str:
    """Where a module stores what was computed from leaves, as words; none if it is not found.

    >>> layer = nn.Linear(2, 2)
    >>> layer.square = [layer.weight @ layer.weight]
    >>> place_of([layer.weight], layer)
    " in the attribute 'square' of the module"
    """
    ids = set(map(id, leaves))

    def is_computed(tensor: Tensor) -> bool:
        return tensor.grad_fn is not None and bool(ids & graph_leaves(tensor).keys())

    name = _where(model, is_computed) if isinstance(model, nn.Module) else None
    return "" if name is None else f" in the attribute {name!r} of the module"


# Of torch's modules; those of nn.RNN are the weights of its last call, which it reads again, and of
# DistributedDataParallel the buffers of its module.
_OWN = ("_parameters", "_buffers", "_modules", "_flat_weights", "modules_buffers")


def _where(model: nn.Module, wanted: Callable[[Tensor], bool]) -> str | None:
    """The first attribute that has such a tensor, other than parameters and buffers."""
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute not in _OWN and any(map(wanted, _tensors(value))):
                return ".".join(filter(None, (path, attribute)))
    return None


def _may_be_computed(tensor: Tensor) -> bool:
    return tensor.dtype.is_floating_point and not tensor.requires_grad and tensor.numel() > 1


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in an attribute: itself, or those in lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
