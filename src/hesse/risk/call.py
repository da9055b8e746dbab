# SPDX-License-Identifier: Apache-2.0
"""`ModelCall`: a module as a function of its parameters and inputs.

`torch.func.functional_call` puts parameters into a module for the time of the forward pass. A
module that runs again in its backward pass (`torch.utils.checkpoint`) would then see its own
parameters: it is copied with the given ones instead.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hesse.data.trees import tensors
from hesse.surroundings import users_contexts
from hesse.vectors.space import Tree


@dataclass(frozen=True)
class ModelCall:
    """How a model is called.

    >>> model = nn.Linear(2, 1)
    >>> ModelCall(model)({"weight": torch.ones(1, 2), "bias": torch.ones(1)}, torch.ones(2))
    tensor([3.])
    """

    model: nn.Module | Callable[[Any, Any], Any]
    """A module, or a function (params, inputs) -> outputs."""
    written_buffers: tuple[str, ...] = ()
    """Buffers that the forward pass writes to; every call gets copies of them."""
    recomputes: bool = False
    """Whether the backward pass runs the module again."""

    def __call__(self, params: Tree, inputs: Any) -> Any:
        """The outputs of the model."""
        with users_contexts():
            return self._outputs(params, inputs)

    def _outputs(self, params: Tree, inputs: Any) -> Any:
        model = self.model
        if not isinstance(model, nn.Module):
            return model(params, inputs)
        buffers = {name: model.get_buffer(name).clone() for name in self.written_buffers}
        args, kwargs = _arguments(inputs)
        if self.recomputes:
            return _copy_with(model, {**params, **buffers})(*args, **kwargs)
        return torch.func.functional_call(model, {**params, **buffers}, args, kwargs)


def device_of(params: Tree) -> torch.device:
    """The device of the first parameter."""
    return next(tensors(params)).device


def _arguments(inputs: Any) -> tuple[tuple, dict[str, Any]]:
    """The positional and keyword arguments of the model."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, (list, tuple)) else (inputs,)), {}


def _copy_with(model: nn.Module, replaced: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the module with these tensors; it shares the others."""
    own: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    own.update(model.named_buffers())
    memo = {id(tensor): tensor for tensor in own.values()}
    memo.update((id(own[name]), tensor) for name, tensor in replaced.items())
    return copy.deepcopy(model, memo)
