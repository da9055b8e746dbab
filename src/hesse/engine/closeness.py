# SPDX-License-Identifier: Apache-2.0
"""Whether two computations of one thing agree."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from hesse.vectors.inner_products import norm

_PIECE = 1 << 18
_ROW = 1 << 12


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

    It is infinite between results of other sizes, too, as those of another batch.

    >>> difference([torch.tensor([3.0, 4.0])], [torch.tensor([0.0, 4.0])])
    0.75
    """
    if [x.numel() for x in ours] != [x.numel() for x in theirs]:
        return math.inf
    error = size = 0.0
    for a, b in _pieces(ours, theirs):
        squares = _squares_of_numbers(float(a), float(b)) if b.numel() == 1 else _squares(a, b)
        error, size = error + squares[0], size + squares[1]
    error = math.sqrt(error / size) if size else error
    return math.inf if math.isnan(error) else error


def _squares(a: Tensor, b: Tensor) -> tuple[float, float]:
    """|a - b|^2 and |b|^2; of what is not finite nothing counts but the places."""
    if _is_finite(b):
        return norm(a - b) ** 2, norm(b) ** 2
    are_same = bool((torch.isfinite(a) == torch.isfinite(b)).all())
    return 0.0 if are_same else math.inf, 0.0


def _squares_of_numbers(a: float, b: float) -> tuple[float, float]:
    """The same for the value of a function, without operations of torch."""
    if math.isfinite(b):
        return (a - b) * (a - b), b * b
    return math.inf if math.isfinite(a) else 0.0, 0.0


def _is_finite(tensor: Tensor) -> bool:
    """Whether all entries are, without a tensor of their size."""
    total = float(tensor.sum(dtype=torch.float64))
    return math.isfinite(total) or bool(torch.isfinite(tensor).all())


def fingerprint(result: Tensor) -> list[float]:
    """The norm of a result and three projections, by which another one is told from it.

    A difference changes a projection by about its norm: entries have random signs within rows, and
    rows have random weights.

    >>> one = torch.ones(1000)
    >>> same_fingerprint(fingerprint(one), fingerprint(one + 1e-5), 1e-7)
    True
    >>> same_fingerprint(fingerprint(one), fingerprint(1.1 * one), 1e-7)
    False
    """
    generator = torch.Generator().manual_seed(0)
    flat = result.detach().reshape(-1)
    whole = len(flat) // _ROW * _ROW
    projections = torch.zeros(3, dtype=torch.float64)
    for rows in (flat[:whole].view(-1, _ROW), flat[None, whole:]):
        if not rows.numel():
            continue
        shape = rows.shape[1], 3
        signs = torch.randint(0, 2, shape, dtype=torch.int8, generator=generator)
        signs = signs.mul_(2).sub_(1).to(rows)
        weights = torch.randn(len(rows), 3, generator=generator, dtype=torch.float64)
        projections += ((rows @ signs).to("cpu", torch.float64) * weights).sum(dim=0)
    return [norm(flat), *projections.tolist()]


def same_fingerprint(ours: list[float], theirs: list[float], eps: float) -> bool:
    """Whether two results are the same up to rounding, as `agree` says of the results."""
    if not all(map(math.isfinite, [*ours, *theirs])):
        return math.isfinite(ours[0]) == math.isfinite(theirs[0])
    tolerance = 3.0 * eps**0.5 * max(ours[0], theirs[0])
    return all(abs(a - b) <= tolerance for a, b in zip(ours, theirs, strict=True))


def _pieces(ours: list[Tensor], theirs: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Entries side by side, so few at a time that a difference of them takes no memory."""
    for pair in zip(ours, theirs, strict=True):
        if pair[1].numel() == 1:
            yield pair
            continue
        yield from zip(*(x.detach().reshape(-1).split(_PIECE) for x in pair), strict=True)
