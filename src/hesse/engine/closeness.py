# SPDX-License-Identifier: Apache-2.0
"""Whether two computations of one thing agree."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from hesse.vectors.inner_products import norm

_PIECE = 1 << 18


def agree(ours: list[Tensor], theirs: list[Tensor], eps: float) -> bool:
    """Whether two results are the same up to rounding to `eps` on the way.

    Half of the digits must be: what is wrong by a term that is missing is further off.

    >>> one = torch.ones(2)
    >>> agree([one], [one + 1e-5], 0.0), agree([one], [2 * one], 0.0)
    (True, False)
    """
    return difference(ours, theirs) <= rounding(ours, eps) ** 0.5


def rounding(results: list[Tensor], eps: float) -> float:
    """The larger of `eps` and the rounding of the results themselves."""
    return max(eps, *(torch.finfo(part.dtype).eps for part in results))


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """|ours - theirs| / |theirs|; infinite unless NaN and infinities are in the same places.

    >>> difference([torch.tensor([3.0, 4.0])], [torch.tensor([0.0, 4.0])])
    0.75
    """
    error = size = 0.0
    for a, b in _pieces(ours, theirs):
        if not bool(torch.isfinite(b).all()):
            if not bool((torch.isfinite(a) == torch.isfinite(b)).all()):
                return math.inf
            continue
        error += norm(a - b) ** 2
        size += norm(b) ** 2
    error = math.sqrt(error / size) if size else error
    return math.inf if math.isnan(error) else error


def _pieces(ours: list[Tensor], theirs: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Entries side by side, so few at a time that a difference of them takes no memory."""
    for pair in zip(ours, theirs, strict=True):
        yield from zip(*(x.detach().reshape(-1).split(_PIECE) for x in pair), strict=True)
