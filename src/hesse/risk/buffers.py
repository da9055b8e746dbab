# SPDX-License-Identifier: Apache-2.0
"""Buffers that a forward pass writes to: running statistics, the vectors of a power iteration.

A function has no memory: its model computes with copies of these, and the user's stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def restoring_buffers(model: nn.Module) -> Iterator[list[str]]:
    """Within it buffers may be written to; afterwards they are as before, and the names are given.

    >>> model = nn.InstanceNorm1d(2, track_running_stats=True)
    >>> with restoring_buffers(model) as changed:
    ...     _ = model(torch.randn(3, 2, 4))
    >>> changed, model.running_mean
    (['running_mean', 'running_var'], tensor([0., 0.]))
    """
    before = [(name, tensor, tensor.clone()) for name, tensor in model.named_buffers()]
    changed: list[str] = []
    try:
        yield changed
    finally:
        for name, tensor, content in before:
            if _restored(model, name, tensor, content):
                changed.append(name)


def _restored(model: nn.Module, name: str, tensor: Tensor, content: Tensor) -> bool:
    """Whether there was anything to restore: another content, or another tensor in its place."""
    owner, _, attribute = name.rpartition(".")
    module = model.get_submodule(owner)
    replaced = getattr(module, attribute, None) is not tensor
    if replaced:
        setattr(module, attribute, tensor)
    written = not torch.equal(tensor, content)
    if written:
        with torch.no_grad():
            tensor.copy_(content)
    return replaced or written


def copies(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Buffers to be written to in place of the model's own."""
    return {name: model.get_buffer(name).clone() for name in names}
