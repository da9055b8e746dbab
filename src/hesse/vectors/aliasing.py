# SPDX-License-Identifier: Apache-2.0
"""Results that share memory with what they were computed from."""

from __future__ import annotations

from torch import Tensor


def unshared(product: Tensor, given: Tensor) -> Tensor:
    """The product, or a copy of it if an operator returned what it was given, or a view of that.

    >>> import torch
    >>> v = torch.ones(2)
    >>> unshared(v, v) is v, unshared(2 * v, v) is v
    (False, False)
    """
    shared = product.untyped_storage().data_ptr() == given.untyped_storage().data_ptr()
    return product.clone() if shared else product
