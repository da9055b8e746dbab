# SPDX-License-Identifier: Apache-2.0
"""Meters for contracts of cost: how many products were taken, how much memory tensors held."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hesse.operators import LinearOperator


class CountingOperator(LinearOperator):
    """A, and a count of the products taken with it.

    `products` adds up A v, A' u, v' A v, and k for a block of k columns; it may be set back to zero.
    Everything else, the inner product included, is A's own.

    >>> from hesse.operators import diagonal_operator
    >>> A = CountingOperator(diagonal_operator(torch.tensor([1.0, 2.0])))
    >>> A @ torch.ones(2), A.to_dense(), A.products
    (tensor([1., 2.]), tensor([[1., 0.],
            [0., 2.]]), 3)
    """

    def __init__(self, A: LinearOperator) -> None:
        super().__init__(A.domain, A.codomain, symmetric=A.symmetric)
        self.A, self.products = A, 0

    def _matvec(self, v: Tensor) -> Tensor:
        self.products += 1
        return self.A._matvec(v)

    def _rmatvec(self, u: Tensor) -> Tensor:
        self.products += 1
        return self.A._rmatvec(u)

    def _matmat(self, block: Tensor) -> Tensor:
        self.products += block.shape[1]
        return self.A._matmat(block)

    def _curvature(self, v: Tensor) -> float:
        self.products += 1
        return self.A._curvature(v)

    def inner(self, u: Tensor, v: Tensor) -> float:
        return self.A.inner(u, v)

    def inners(self, basis: Tensor, v: Tensor) -> Tensor:
        return self.A.inners(basis, v)


class PeakMemory(TorchDispatchMode):
    """The most memory that tensors made inside a `with` block held at one time, in bytes.

    Unlike the size of the process it is the same on every machine and in every run. Counted are the
    results of operations, the backward pass included, while anything refers to them; not counted are
    tensors that existed before and the scratch space inside a single kernel.

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
        known = {id(leaf.untyped_storage()) for leaf in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
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


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
