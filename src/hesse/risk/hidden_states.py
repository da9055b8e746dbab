# SPDX-License-Identifier: Apache-2.0
"""The outputs of some modules inside of a model, read while the model is called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from hesse.errors import FunctionError, kind_of


class HiddenStates:
    """Reads the hidden states: what some modules return when the model calls them.

    Of a tuple it is the first part, as the states of all times of `nn.LSTM`, and the data of a
    packed sequence, which has no padding. A module that is called at every time, such as
    `nn.RNNCell`, has a state for each call.

    Args:
        modules: those whose outputs are hidden states.

    >>> import torch
    >>> layer = nn.Identity()
    >>> states = HiddenStates([layer])
    >>> with states.read() as found:
    ...     _ = layer(torch.ones(2)), layer(torch.zeros(1))
    >>> found
    [[tensor([1., 1.]), tensor([0.])]]
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = list(modules)

    @contextmanager
    def read(self) -> Iterator[list[list[Tensor]]]:
        """The states of each module, to be looked at after the context in which the model runs."""
        found: list[list[Tensor]] = []
        outputs = [_Noted() for _ in self._modules]
        handles = [
            module.register_forward_hook(partial(_note, own))
            for module, own in zip(self._modules, outputs, strict=True)
        ]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()
        for module, own in zip(self._modules, outputs, strict=True):
            if not own:
                raise _not_called(module)
            found.append([_first(module, output) for output in own])


class _Noted(list[Any]):
    """The outputs of a module, and of copies of it: where a checkpoint is, a copy is called."""

    def __deepcopy__(self, memo: Any) -> _Noted:
        return self


def _note(outputs: _Noted, module: nn.Module, inputs: Any, output: Any) -> None:
    """Without a look at it, which would be a call of torch within the model."""
    outputs.append(output)


def _first(module: nn.Module, output: Any) -> Tensor:
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    if isinstance(output, Tensor) and output.dtype.is_floating_point:
        return output
    raise FunctionError(
        expected="hidden states that are a floating-point tensor, or the first part of a tuple",
        got=f"{kind_of(output)} from {type(module).__name__}",
        remedy="Name a module inside of it that returns the states: structural_damping={module: "
        "0.03}.",
    )


def _not_called(module: nn.Module) -> FunctionError:
    return FunctionError(
        expected="modules of hidden states that the forward pass calls",
        got=f"{kind_of(module)} that it does not call",
        remedy="Name those that it does call: structural_damping={module: 0.03}; of one whose "
        "weights are used without a call, put the states through an nn.Identity().",
    )
