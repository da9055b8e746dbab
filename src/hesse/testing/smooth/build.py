# SPDX-License-Identifier: Apache-2.0
"""What the builders of smooth problems share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hesse.testing.problems import Problem

Function = Callable[[Tensor], Tensor]


def vector(*entries: float) -> Tensor:
    """A float64 vector.

    >>> vector(1, 2)
    tensor([1., 2.], dtype=torch.float64)
    """
    return torch.tensor(entries, dtype=torch.float64)


def full(n: int, *entries: float) -> Tensor:
    """The float64 vector of length n that repeats these entries.

    >>> full(3, 1.0, 2.0)
    tensor([1., 2., 1.], dtype=torch.float64)
    """
    return vector(*entries).repeat(-(-n // len(entries)))[:n]


def count(n: int, like: Tensor | None = None) -> Tensor:
    """The vector (1, ..., n), of the dtype and device of another.

    >>> count(3)
    tensor([1., 2., 3.], dtype=torch.float64)
    """
    if like is None:
        return torch.arange(1, n + 1, dtype=torch.float64)
    return torch.arange(1, n + 1, dtype=like.dtype, device=like.device)


def indices(x: Tensor) -> Tensor:
    """(1, ..., n) in the dtype of x."""
    return count(len(x), x)


def shifted(x: Tensor, by: int) -> Tensor:
    """The vector of x_{i - by}, zero outside of 1..n.

    >>> shifted(torch.tensor([1.0, 2.0, 3.0]), 1)
    tensor([0., 1., 2.])
    """
    zeros = x.new_zeros(abs(by))
    return torch.cat([zeros, x[:-by]] if by > 0 else [x[-by:], zeros])


def smooth(
    name: str,
    f: Function,
    x: Tensor,
    minimum: float | None = None,
    minimiser: Tensor | None = None,
    local_minima: Sequence[float] = (),
) -> Problem:
    """A function with its standard start and what is known of its minima."""
    return Problem(
        name, f, x, minimum=minimum, minimiser=minimiser, local_minima=tuple(local_minima)
    )


def least_squares(
    name: str,
    residuals: Function,
    x: Tensor,
    minimum: float | None = None,
    minimiser: Tensor | None = None,
    local_minima: Sequence[float] = (),
) -> Problem:
    """The sum of squares of residuals."""
    f = smooth(name, lambda x: residuals(x).square().sum(), x, minimum, minimiser, local_minima)
    return replace(f, residuals=residuals)


def sized(name: str, n: int) -> str:
    """The name of a problem of which there are several sizes."""
    return f"{name}(n={n})"
