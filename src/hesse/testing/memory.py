# SPDX-License-Identifier: Apache-2.0
"""`PeakMemory`: how much memory tensors held, the same on every machine and in every run."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hesse.data import tensors


class PeakMemory(TorchDispatchMode):
    """The most memory that tensors made inside a `with` block held at one time, in bytes.

    Unlike the size of the process it is the same on every machine and in every run. Counted are the
    results of operations, the backward pass included, while anything refers to them; not counted
    are tensors that existed before and the scratch space inside a single kernel.

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

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func` and take note of the storages that it made."""
        known = {id(leaf.untyped_storage()) for leaf in tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in tensors(result):
            storage = tensor.untyped_storage()
            if id(storage) not in known and id(storage) not in self._alive:
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()

        def release(_: weakref.ref) -> None:
            if self._alive.pop(key, None) is not None:
                self.current -= size

        self._alive[key] = weakref.ref(storage, release)
        self.current += size
        self.peak = max(self.peak, self.current)
