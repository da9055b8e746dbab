# SPDX-License-Identifier: Apache-2.0
"""NumPy arrays where a tensor is expected: they become tensors, and results become arrays again."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from torch import Tensor

from hesse.errors import ArgumentError, DtypeError, kind_of


def as_tensor(value: Any, device: torch.device | str = "cpu") -> Any:
    """A NumPy array as a tensor on `device`, which shares its memory if it can; else the value.

    The dtype stays: float64 vectors for an operator in float32 are refused like tensors are, since
    rounding them to float32 in silence would lose half of their digits.

    >>> as_tensor(numpy.ones(2))
    tensor([1., 1.], dtype=torch.float64)
    >>> as_tensor("text")
    'text'
    """
    if not isinstance(value, numpy.ndarray):
        return value
    # torch refuses negative strides and the byte order of other machines, and warns of read-only
    # memory: such arrays are copied.
    native = value.astype(value.dtype.newbyteorder("="), copy=False)
    if not (native.flags.writeable and native.flags.c_contiguous):
        native = native.copy(order="C")
    try:
        return torch.from_numpy(native).to(device)
    except TypeError as error:
        raise DtypeError(
            expected="an array of real floating-point numbers",
            got=f"a NumPy array of dtype {value.dtype}",
            remedy="Convert it with .astype('float32') or .astype('float64').",
        ) from error


def as_numbers(value: Any, what: str, remedy: str, **options: Any) -> Tensor:
    """Numbers of any form as a tensor, with the options of `torch.as_tensor`; raises for others.

    >>> as_numbers([1, 2], "labels", "Give integers.")
    tensor([1, 2])
    """
    try:
        return torch.as_tensor(value, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(
            expected=f"{what} to be a tensor, or numbers that make one",
            got=kind_of(value),
            remedy=remedy,
        ) from error


def as_array(tensor: Tensor) -> numpy.ndarray:
    """A tensor as a NumPy array, which shares its memory if it can.

    >>> as_array(torch.ones(2))
    array([1., 1.], dtype=float32)
    """
    if tensor.dtype is torch.bfloat16:  # which NumPy does not have
        tensor = tensor.float()
    return tensor.detach().cpu().numpy()
