# SPDX-License-Identifier: Apache-2.0
"""`PeakMemory`: the most memory that tensors held at one time."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hesse.dispatch import Watch
from hesse.memory.sizes import format_bytes
from hesse.result import OneLine


class PeakMemory(OneLine, Watch):
    """The most memory that tensors made inside a `with` block held at one time, in bytes.

    Unlike the size of the process it is the same on every machine and in every run. It counts the
    results of operations, the backward pass included, as long as something refers to them; it does
    not count tensors that existed before, nor the scratch space inside a kernel.

    >>> with PeakMemory() as memory:
    ...     for _ in range(3):
    ...         result = (torch.ones(1000) + 1.0).sum()
    >>> 8000 <= memory.peak < 8100       # two float32 vectors at a time
    True
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self._alive: dict[int, weakref.ref] = {}

    def __repr__(self) -> str:
        return f"PeakMemory(peak {format_bytes(self.peak)})"

    def observe(self, function: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        """Count the storages that an operation made."""
        known = {id(leaf.untyped_storage()) for leaf in _tensors((args, tuple(kwargs.values())))}
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if id(storage) not in known and id(storage) not in self._alive:
                self._add(storage)

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()

        def release(_: weakref.ref) -> None:
            if self._alive.pop(key, None) is not None:
                self.current -= size

        self._alive[key] = weakref.ref(storage, release)
        self.current += size
        self.peak = max(self.peak, self.current)


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for child in tree:
            yield from _tensors(child)
