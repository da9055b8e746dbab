# SPDX-License-Identifier: Apache-2.0
r"""The value of a risk that several processes share, differentiable as often as one likes.

$$ R(\theta) = \sum_r R_r(\theta) $$

Two functions surround the part of a rank: a copy of the parameters in front, whose derivative is
the sum over ranks, and a sum over ranks behind, whose derivative is the copy. Parameters that are
sharded are gathered instead of copied; the derivative of that is the part of this rank in the sum.

They are called `...AmongRanks`, by which the engine knows that a function communicates: it then
takes no product by a trace, whose time each rank would choose by its own clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hesse.ranks import Ranks
from hesse.vectors.exchange import gather, sum_and_scatter
from hesse.vectors.space import Space, Tree
from hesse.vectors.trees import fill


def shared_value(ranks: Ranks, local: Callable[[Tree], Tensor], params: Tree) -> Tensor:
    """The sum over ranks of local(params), shape (); all ranks call it together."""
    space = Space.of(params, what="params", ranks=ranks)
    parts = space.leaves(params, what="params")
    if space.shards is None:
        leaves = CopiedAmongRanks.apply(ranks, *parts)
    else:
        leaves = GatheredAmongRanks.apply(space, *parts)

    def part() -> Tensor:
        # Adds nothing, but makes the graphs of all ranks alike, whatever they have data of.
        nothing = sum((0.0 * torch.sin(leaf)).sum() for leaf in leaves)
        return local(fill(space.template, iter(leaves))).to(space.dtype) + nothing

    return SummedAmongRanks.apply(ranks, ranks.together(part))[0]


class GatheredAmongRanks(torch.autograd.Function):
    """The whole leaves of which this rank has these parts."""

    @staticmethod
    def forward(space: Space, *parts: Tensor) -> tuple[Tensor, ...]:
        """One all-gather."""
        assert space.shards is not None
        whole = gather(space, space.join(parts)[None])[0]
        pieces = whole.split([math.prod(shape) for shape in space.shards.shapes])
        rows = zip(pieces, space.shards.shapes, space.dtypes, strict=True)
        return tuple(piece.view(shape).to(dtype, copy=True) for piece, shape, dtype in rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep the space."""
        ctx.space = inputs[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The parts of this rank in the sums of the gradients of all ranks."""
        return None, *ScatteredAmongRanks.apply(ctx.space, *gradients)


class ScatteredAmongRanks(torch.autograd.Function):
    """The parts of this rank in the sums over ranks of whole leaves."""

    @staticmethod
    def forward(space: Space, *leaves: Tensor) -> tuple[Tensor, ...]:
        """One reduce-scatter."""
        part = sum_and_scatter(space, 1, lambda: space.join(leaves)[None])[0]
        return tuple(piece.clone() for piece in space.split(part))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep the space."""
        ctx.space = inputs[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The gradients of all parts, on every rank."""
        return None, *GatheredAmongRanks.apply(ctx.space, *gradients)


class CopiedAmongRanks(torch.autograd.Function):
    """The tensors themselves; the gradients of all ranks are added up."""

    @staticmethod
    def forward(_: Ranks, *parts: Tensor) -> tuple[Tensor, ...]:
        """Copies, so that none is an argument."""
        return tuple(part.clone() for part in parts)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep the processes."""
        ctx.ranks = inputs[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Their sums over ranks."""
        return None, *SummedAmongRanks.apply(ctx.ranks, *gradients)


class SummedAmongRanks(torch.autograd.Function):
    """The sums over ranks of some tensors, by one all-reduce."""

    @staticmethod
    def forward(ranks: Ranks, *parts: Tensor) -> tuple[Tensor, ...]:
        """The sums."""
        flat = torch.cat([part.reshape(-1) for part in parts])
        sums = ranks.sum_of(lambda: flat, flat).split([part.numel() for part in parts])
        return tuple(
            sum_.view(part.shape).to(part.dtype) for sum_, part in zip(sums, parts, strict=True)
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep the processes."""
        ctx.ranks = inputs[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The same on every rank."""
        return None, *CopiedAmongRanks.apply(ctx.ranks, *gradients)
