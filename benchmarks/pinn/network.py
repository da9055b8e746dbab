# SPDX-License-Identifier: Apache-2.0
"""A network u(t, x) of tanh layers, with its derivatives in t and x carried along."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Jet(NamedTuple):
    """u and its derivatives at points: every entry has the shape of the points."""

    u: Tensor
    t: Tensor
    x: Tensor
    tt: Tensor
    xx: Tensor


class Network:
    """An MLP with two inputs and one output; the inputs are mapped to [-1, 1].

    Args:
        width, depth: of the hidden layers.
        domain: ((t0, t1), (x0, x1)).

    >>> Network(20, 4, ((0.0, 1.0), (-1.0, 1.0))).size
    1341
    """

    def __init__(
        self, width: int, depth: int, domain: tuple[tuple[float, float], tuple[float, float]]
    ) -> None:
        self.domain = domain
        sizes = [2, *[width] * depth, 1]
        self._shapes = list(pairwise(sizes))
        self.size = sum((a + 1) * b for a, b in self._shapes)

    def start(self, seed: int, dtype: torch.dtype) -> Tensor:
        """Weights of Glorot's size and biases of zero, flat; drawn in float64."""
        generator = torch.Generator().manual_seed(seed)
        leaves = []
        for a, b in self._shapes:
            scale = math.sqrt(2.0 / (a + b))
            leaves.append(scale * torch.randn(a * b, dtype=torch.float64, generator=generator))
            leaves.append(torch.zeros(b, dtype=torch.float64))
        return torch.cat(leaves).to(dtype)

    def jet(self, theta: Tensor, points: Tensor) -> Jet:
        """u with its derivatives at points of shape (..., 2)."""
        (t0, t1), (x0, x1) = self.domain
        center = points.new_tensor([(t0 + t1) / 2, (x0 + x1) / 2])
        slope = points.new_tensor([2 / (t1 - t0), 2 / (x1 - x0)])
        h = (points - center) * slope
        ht = (slope * slope.new_tensor([1.0, 0.0])).expand_as(h)
        hx = (slope * slope.new_tensor([0.0, 1.0])).expand_as(h)
        htt = hxx = torch.zeros_like(h)
        place, last = 0, len(self._shapes) - 1
        for i, (a, b) in enumerate(self._shapes):
            W = theta[place : place + a * b].view(a, b)
            bias = theta[place + a * b : place + (a + 1) * b]
            place += (a + 1) * b
            h, ht, hx, htt, hxx = h @ W + bias, ht @ W, hx @ W, htt @ W, hxx @ W
            if i < last:
                h = torch.tanh(h)
                first = 1 - h * h
                second = -2 * h * first
                htt, hxx = second * ht * ht + first * htt, second * hx * hx + first * hxx
                ht, hx = first * ht, first * hx
        return Jet(*(v.squeeze(-1) for v in (h, ht, hx, htt, hxx)))
