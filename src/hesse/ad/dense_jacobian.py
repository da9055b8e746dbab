# SPDX-License-Identifier: Apache-2.0
"""The Jacobian of a function of a flat vector as a matrix, by vectorised derivatives of torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hesse.surroundings import without_saved_tensor_hooks

# Rows are backward passes, columns forward ones, which cost about this many of them.
_COLUMN = 4
# The entries of all rows or columns that are taken at once.
_AT_ONCE = 1 << 22


def dense_jacobian(f: Callable[[Tensor], Tensor], x: Tensor, rows: int) -> Tensor:
    """The Jacobian of f at x, shape (rows, n): by its rows, or by its columns if it is tall.

    Args:
        f: a function of a flat vector whose result is one.
        x: shape (n,).
        rows: the length of f(x).

    Raises:
        what torch raises where f cannot be vectorised, and what f raises.

    >>> dense_jacobian(lambda x: torch.stack([x[0] * x[1], x[0]]), torch.tensor([2.0, 3.0]), 2)
    tensor([[3., 2.],
            [1., 0.]])
    """
    chunk = max(1, _AT_ONCE // max(rows, x.shape[0]))
    with torch.inference_mode(False), torch.enable_grad(), without_saved_tensor_hooks():
        if rows > _COLUMN * x.shape[0]:
            J = torch.func.jacfwd(f)(x)
        else:
            J = torch.func.jacrev(f, chunk_size=chunk)(x)
    assert isinstance(J, Tensor)
    return J.detach()
