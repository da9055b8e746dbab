# SPDX-License-Identifier: Apache-2.0
"""Finding the buffers that a forward pass writes to, and restoring them.

Running statistics and the vectors of a power iteration are examples. The model is then called with
copies of them, so that it is a function of its parameters and the user's buffers stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def restoring_buffers(model: nn.Module) -> Iterator[list[str]]:
    """Restore the buffers of the model at the end; the list then has the names of those changed.

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
    """Restore a buffer; whether its content, or the tensor in its place, had changed."""
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
