# SPDX-License-Identifier: Apache-2.0
"""Results that share memory with what they were computed from, or with other results."""

from __future__ import annotations

import weakref

from torch import Tensor


def unshared(product: Tensor, given: Tensor) -> Tensor:
    """The product, or a copy of it if an operator returned what it was given, or a view of that.

    >>> import torch
    >>> v = torch.ones(2)
    >>> unshared(v, v) is v, unshared(2 * v, v) is v
    (False, False)
    """
    return product.clone() if _address(product) == _address(given) else product


class PrivateResults:
    """The results of a function that may write them into one buffer, in memory of their own.

    A tensor that was written to after it was made may be such a buffer, and one in the memory of an
    earlier result is.

    >>> import torch
    >>> buffer, results = torch.zeros(2), PrivateResults()
    >>> results.private(buffer.add_(1.0), torch.ones(2)) is buffer
    False
    """

    def __init__(self) -> None:
        self._last: weakref.ref[Tensor] | None = None

    def private(self, result: Tensor, given: Tensor) -> Tensor:
        """The result, or a copy of it; what it shares with the argument is not looked at."""
        if _address(result) == _address(given):
            return result
        last = None if self._last is None else self._last()
        if num_writes(result) > 0 or (last is not None and _address(last) == _address(result)):
            return result.clone()
        self._last = weakref.ref(result)
        return result


def num_writes(tensor: Tensor) -> int:
    """How often torch has written to a tensor since it was made; 0 where torch does not count.

    >>> import torch
    >>> num_writes(torch.zeros(2)), num_writes(torch.zeros(2).add_(1.0))
    (0, 1)
    """
    return 0 if tensor.is_inference() else tensor._version


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
