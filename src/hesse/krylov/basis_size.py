# SPDX-License-Identifier: Apache-2.0
"""How many vectors `Lanczos` keeps, and whether they can be allocated as the caller asks."""

from __future__ import annotations

import torch

from hesse.errors import ArgumentError
from hesse.operators.algebra import LinearOperator

# A basis of the whole space is kept where it takes little memory (32 MB in float64): then nothing
# is lost by restarts, and n products give the exact answer.
_WHOLE = 2048


def choose_basis_size(
    A: LinearOperator,
    k: int,
    b: int,
    size: int | None,
    dtype: torch.dtype | None,
    room: int | None,
) -> int:
    """Vectors that are kept, at most n, within `room` bytes."""
    n, entries = A.domain.n, A.domain.max_size
    is_free = size is None and room is None
    default = n if is_free and n <= _WHOLE else usual_size(k, b)
    m = default if size is None else size
    if room is not None:
        work = max(k + b + 4, 2 * b) * entries * A.dtype.itemsize
        row = entries * (A.dtype if dtype is None else dtype).itemsize
        fits, least = (room - work) // row - b, min(k + b, n)
        if fits < least:
            need = (least + b) * row + work
            raise ArgumentError(
                expected=f"a memory budget of at least {need:,} bytes for {least} basis vectors",
                got=f"{room:,} bytes",
                remedy="Raise memory_budget, ask for fewer pairs, or give basis_dtype.",
            )
        m = min(m, fits)
    if m < min(k + b, n):
        raise ArgumentError(
            expected=f"basis_size >= k + block_size = {k + b}",
            got=str(m),
            remedy="Leave it out for max(2k + 10, 30).",
        )
    return min(m, n)


def usual_size(k: int, b: int) -> int:
    """Vectors that suffice for k pairs and blocks of b; about as many products mostly do."""
    return max(2 * k + 10, 30) + 2 * (b - 1)


def check_home(dtype: torch.dtype | None, device: torch.device | str | None) -> None:
    """Raise unless real vectors of this dtype can be allocated on this device."""
    try:
        number = torch.zeros(1, dtype=dtype, device=device)
        number.item()  # raises on the device "meta"
    except (AssertionError, RuntimeError, TypeError) as error:
        got = str(error).splitlines()[0]
    else:
        if number.dtype.is_floating_point:
            return
        got = str(number.dtype)
    raise ArgumentError(
        expected="basis_dtype and basis_device of real vectors, on a device that exists",
        got=got,
        remedy="Leave them out for those of the vectors.",
    )
