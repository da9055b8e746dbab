# SPDX-License-Identifier: Apache-2.0
"""Cross products and determinants of matrices of up to three rows, written out.

They are what energies of meshes and molecules are made of. See `composing`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hesse.ad.composing import composes


def _cross(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """a_{i+1} b_{i+2} - a_{i+2} b_{i+1}."""
    a, b = torch.broadcast_tensors(a, b)
    return a.roll(-1, dim) * b.roll(-2, dim) - a.roll(-2, dim) * b.roll(-1, dim)


def _det(A: Tensor) -> Tensor:
    """The determinant by its first row."""
    if A.shape[-1] == 1:
        return A[..., 0, 0]
    if A.shape[-1] == 2:
        return A[..., 0, 0] * A[..., 1, 1] - A[..., 0, 1] * A[..., 1, 0]
    return (A[..., 0, :] * _cross(A[..., 1, :], A[..., 2, :], -1)).sum(-1)


def _logdet(A: Tensor) -> Tensor:
    return _det(A).log()


def _slogdet(A: Tensor) -> Any:
    det = _det(A)
    types: Any = torch.return_types
    return types.linalg_slogdet((det.detach().sign(), det.abs().log()))


def cross(function: Callable[..., Tensor], default: int | None) -> Callable[..., Tensor]:
    """What stands for a cross product along `default`, if no other dimension is given.

    >>> from hesse.ad.composing import Composing
    >>> x, y = torch.eye(3)[:2]
    >>> Composing(lambda y: cross(torch.linalg.cross, -1)(x, y))(y)
    tensor([0., 0., 1.])
    """

    def multiply(input: Tensor, other: Tensor, dim: int | None = default, **kwargs: Any) -> Tensor:
        if not composes() or dim is None or kwargs or input.ndim != other.ndim:
            given = {} if dim is None else {"dim": dim}
            return function(input, other, **given, **kwargs)
        return _cross(input, other, dim)

    return multiply


def of_small(function: Callable[..., Any], composed: Callable[[Tensor], Any]) -> Callable[..., Any]:
    """What stands for a function of the determinant."""

    def determine(*args: Any, **kwargs: Any) -> Any:
        if composes() and len(args) == 1 and not kwargs and _is_small(args[0]):
            return composed(args[0])
        return function(*args, **kwargs)

    return determine


def _is_small(A: Any) -> bool:
    """Whether this is one or several square matrices of up to three rows."""
    is_square = isinstance(A, Tensor) and A.ndim >= 2 and A.shape[-2] == A.shape[-1]
    return is_square and 1 <= A.shape[-1] <= 3


SMALL_MATRICES = {
    torch.linalg.cross: cross(torch.linalg.cross, -1),
    torch.cross: cross(torch.cross, None),
    torch.Tensor.cross: cross(torch.Tensor.cross, None),
    **{f: of_small(f, _det) for f in (torch.det, torch.Tensor.det, torch.linalg.det)},
    **{f: of_small(f, _logdet) for f in (torch.logdet, torch.Tensor.logdet)},
    **{f: of_small(f, _slogdet) for f in (torch.slogdet, torch.Tensor.slogdet)},
    torch.linalg.slogdet: of_small(torch.linalg.slogdet, _slogdet),
}
"""What stands for each of these."""
