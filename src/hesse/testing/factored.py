# SPDX-License-Identifier: Apache-2.0
"""Models for factored curvature matrices, and their blocks beside those of the dense matrix."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesse.testing.likelihoods import normal

CE = nn.CrossEntropyLoss()


def linear(*widths: int, bias: bool = False) -> nn.Sequential:
    """A deep linear network of these widths, in float64."""
    layers = [nn.Linear(i, o, bias=bias) for i, o in pairwise(widths)]
    return nn.Sequential(*layers).double()


def mlp() -> nn.Sequential:
    """A network 4-5-6-3 with a unit that writes in place and a norm, in float64."""
    return nn.Sequential(
        nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.ReLU(inplace=True), nn.LayerNorm(6),
        nn.Linear(6, 3),
    ).double()  # fmt: skip


def classes(*shape: int) -> tuple[Tensor, Tensor]:
    """Inputs of this shape, and one of three classes for each example."""
    return normal(*shape), torch.randint(0, 3, shape[:1])


def token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy over the places whose target is not -100."""
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=-100)


def against_blocks(K: Any, G: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, block of K, block of the dense matrix G) for all blocks of a `kfac_operator` K."""
    dense = K.to_dense()
    for block in K.blocks:
        index = block.place.take(torch.arange(len(G)))
        yield block.names[0], dense[index][:, index], G[index][:, index]


def block_errors(K: Any, G: Tensor) -> dict[str, float]:
    """The relative errors, in the Frobenius norm, of the blocks of K that are not zero in G."""
    return {
        name: float((ours - theirs).norm() / theirs.norm())
        for name, ours, theirs in against_blocks(K, G)
        if theirs.norm() > 0
    }
