# SPDX-License-Identifier: Apache-2.0
"""A network u(t, x), with its derivatives in t and x carried along."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Activation = Literal["tanh", "sine"]
# With weights of this times an orthogonal matrix, the outputs of tanh layers keep their size.
_TANH_GAIN = 5 / 3


class Jet(NamedTuple):
    """u and its derivatives at points: every entry has the shape of the points."""

    u: Tensor
    t: Tensor
    x: Tensor
    tt: Tensor
    xx: Tensor


class Layer(NamedTuple):
    """The parameters of a layer: activation(scale (h W + bias)), the last one without."""

    W: Tensor
    bias: Tensor
    scale: Tensor | None


class Trace(NamedTuple):
    """What a layer saw at points, as jets: its inputs, h W + bias, and that times the scale."""

    inputs: Tensor
    affine: Tensor
    scaled: Tensor


class Network:
    """An MLP whose hidden layers have a trainable scale each.

    The inputs are t and x mapped to [-1, 1]; or, for a period in x, t as it is, cos and sin of x
    mapped to [-pi, pi], so that u is periodic whatever the weights are.

    Args:
        width, depth: of the hidden layers.
        domain: ((t0, t1), (x0, x1)).
        is_periodic: whether u has the period of the domain in x.
        activation: of the hidden layers.

    >>> Network(20, 4, ((0.0, 1.0), (-1.0, 1.0)), is_periodic=True).size
    1365
    """

    def __init__(
        self,
        width: int,
        depth: int,
        domain: tuple[tuple[float, float], tuple[float, float]],
        *,
        is_periodic: bool = False,
        activation: Activation = "tanh",
    ) -> None:
        self.domain, self.is_periodic, self.activation = domain, is_periodic, activation
        sizes = [3 if is_periodic else 2, *[width] * depth, 1]
        self._shapes = list(pairwise(sizes))
        self.size = sum((a + 1) * b for a, b in self._shapes) + depth

    def start(self, seed: int, dtype: torch.dtype) -> Tensor:
        """Parameters, flat; drawn in float64.

        Of tanh layers orthogonal with a gain, of sine layers as Sitzmann et al. 2020
        (arXiv:2006.09661) draw them, for a first frequency of one.
        """
        generator = torch.Generator().manual_seed(seed)
        draw = self._orthogonal if self.activation == "tanh" else self._uniform
        leaves, last = [], len(self._shapes) - 1
        for i, (a, b) in enumerate(self._shapes):
            leaves += [part.reshape(-1) for part in draw(i, a, b, generator)]
            if i < last:
                leaves.append(torch.ones(1, dtype=torch.float64))
        return torch.cat(leaves).to(dtype)

    def layers(self, theta: Tensor) -> Iterator[Layer]:
        """The parameters layer by layer."""
        place, last = 0, len(self._shapes) - 1
        for i, (a, b) in enumerate(self._shapes):
            sizes = [a * b, b, 0 if i == last else 1]
            W, bias, scale = theta[place : place + sum(sizes)].split(sizes)
            place += sum(sizes)
            yield Layer(W.view(a, b), bias, None if i == last else scale)

    def jet(self, theta: Tensor, h: Tensor, traces: list[Trace] | None = None) -> Jet:
        """u with its derivatives.

        Args:
            theta: the parameters.
            h: `inputs` at points.
            traces: a list to which every layer appends what it saw.
        """
        for W, bias, scale in self.layers(theta):
            affine = h @ W
            affine = torch.cat([affine[:1] + bias, affine[1:]])
            scaled = affine if scale is None else scale * affine
            if traces is not None:
                traces.append(Trace(h, affine, scaled))
            h = scaled if scale is None else self._activate(scaled)
        return Jet(*h[..., 0])

    def values(self, theta: Tensor, h: Tensor) -> Tensor:
        """u alone, of the first of the `inputs`."""
        for W, bias, scale in self.layers(theta):
            h = h @ W + bias
            if scale is not None:
                h = torch.tanh(scale * h) if self.activation == "tanh" else torch.sin(scale * h)
        return h[..., 0]

    def rows(self, theta: Tensor, traces: list[Trace], slopes: list[Tensor]) -> Tensor:
        """The derivatives by the parameters, a row for each point, shape (m, size).

        Args:
            theta: where.
            traces: of one `jet`.
            slopes: derivatives of a value at each point by `scaled` of every layer.
        """
        blocks = []
        for layer, trace, slope in zip(self.layers(theta), traces, slopes, strict=True):
            by_affine = slope if layer.scale is None else layer.scale * slope
            by_weights = torch.einsum("jma,jmb->mab", trace.inputs, by_affine)
            blocks += [by_weights.flatten(1), by_affine[0]]
            if layer.scale is not None:
                blocks.append((trace.affine * slope).sum((0, 2))[:, None])
        return torch.cat(blocks, 1)

    def inputs(self, points: Tensor) -> Tensor:
        """Jets of the inputs at points (m, 2), shape (5, m, inputs)."""
        (t0, t1), (x0, x1) = self.domain
        t, x = points.unbind(-1)
        zero, one = torch.zeros_like(t), torch.ones_like(t)
        if self.is_periodic:
            slope = 2 * math.pi / (x1 - x0)
            z = slope * (x - (x0 + x1) / 2)
            c, s = torch.cos(z), torch.sin(z)
            jets = [
                [t, one, zero, zero, zero],
                [c, zero, -slope * s, zero, -(slope**2) * c],
                [s, zero, slope * c, zero, -(slope**2) * s],
            ]
        else:
            steep, slope = 2 / (t1 - t0), 2 / (x1 - x0)
            jets = [
                [steep * (t - (t0 + t1) / 2), steep * one, zero, zero, zero],
                [slope * (x - (x0 + x1) / 2), zero, slope * one, zero, zero],
            ]
        return torch.stack([torch.stack(jet) for jet in jets], dim=-1)

    def _activate(self, z: Tensor) -> Tensor:
        """Jets through the activation."""
        value, t, x, tt, xx = z
        if self.activation == "tanh":
            h = torch.tanh(value)
            first = 1 - h * h
            second = -2 * h * first
        else:
            h, first = torch.sin(value), torch.cos(value)
            second = -h
        return torch.stack(
            [h, first * t, first * x, second * t * t + first * tt, second * x * x + first * xx]
        )

    def _orthogonal(self, i: int, a: int, b: int, generator: torch.Generator) -> list[Tensor]:
        if i == len(self._shapes) - 1:
            W = torch.randn(a, b, dtype=torch.float64, generator=generator) / math.sqrt(a)
        else:
            tall = torch.randn(max(a, b), min(a, b), dtype=torch.float64, generator=generator)
            Q, R = torch.linalg.qr(tall)
            Q = _TANH_GAIN * Q * torch.sign(torch.diagonal(R))
            W = Q if a >= b else Q.T
        return [W, 0.01 * torch.randn(b, dtype=torch.float64, generator=generator)]

    def _uniform(self, i: int, a: int, b: int, generator: torch.Generator) -> list[Tensor]:
        def uniform(*shape: int) -> Tensor:
            return 2 * torch.rand(*shape, dtype=torch.float64, generator=generator) - 1

        if i == 0:
            return [uniform(a, b) / a, uniform(b)]
        if i == len(self._shapes) - 1:
            return [math.sqrt(3 / a) * uniform(a, b), torch.zeros(b, dtype=torch.float64)]
        small = 0.01 * torch.randn(b, dtype=torch.float64, generator=generator)
        return [math.sqrt(6 / a) * uniform(a, b), small]
