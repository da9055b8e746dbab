# SPDX-License-Identifier: Apache-2.0
"""How many vectors `eigsh` keeps, and whether they can live where they are asked to."""

from __future__ import annotations

import torch

from hesse.errors import ArgumentError, check_count
from hesse.operators.algebra import LinearOperator


def choose_basis_size(
    A: LinearOperator,
    k: int,
    b: int,
    size: int | None,
    dtype: torch.dtype | None,
    room: int | None,
    call: str,
) -> int:
    """Vectors that are kept, at most n."""
    n, usual = A.shape[0], max(2 * k + 10, 30) + 2 * (b - 1)
    m = usual if size is None else check_count("basis_size", size, 1, call)
    if room is not None:
        work = max(k + b + 4, 2 * b) * n * A.dtype.itemsize
        row = n * (A.dtype if dtype is None else dtype).itemsize
        fits, least = (room - work) // row - b, min(k + b, n)
        if fits < least:
            need = (least + b) * row + work
            raise ArgumentError(
                call,
                expected=f"a memory budget of at least {need:,} bytes for {least} basis vectors",
                got=f"{room:,} bytes",
                remedy="Raise memory_budget, ask for fewer pairs, or give basis_dtype.",
            )
        m = min(m, fits)
    if m < min(k + b, n):
        raise ArgumentError(
            call,
            expected=f"basis_size >= k + block_size = {k + b}",
            got=str(m),
            remedy="Leave it out for max(2k + 10, 30).",
        )
    return min(m, n)


def check_home(dtype: torch.dtype | None, device: torch.device | str | None, call: str) -> None:
    """Raise unless a basis may live there."""
    try:
        number = torch.zeros(1, dtype=dtype, device=device)
        number.item()  # one of "meta" has none
    except (AssertionError, RuntimeError, TypeError) as error:
        got = str(error).splitlines()[0]
    else:
        if number.dtype.is_floating_point:
            return
        got = str(number.dtype)
    raise ArgumentError(
        call,
        expected="basis_dtype and basis_device of real vectors, on a device that there is",
        got=got,
        remedy="Leave them out for those of the vectors.",
    )
