# SPDX-License-Identifier: Apache-2.0
"""Layer and group norms, whose derivatives are one operation of torch.

The entries of a row of n entries, with mean zero and variance one, are

    z = r (x - mean x)              r = (mean (x - mean x)^2 + eps)^(-1/2)
    dz = r P dx                     P u = u - mean u - z mean(z u)

P is symmetric, so that it serves both modes. It is what torch's fused kernel of a backward pass
computes, in one pass over memory where the operations one by one take six. The derivatives of P
and r are composed of P, sums and products, and so are right to every order: torch's own third
derivative takes mean and variance for constants.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hesse.ad.composing import composes


def normalised(x: Tensor, eps: float) -> Tensor:
    """The rows with mean zero and variance one, in float32 at least.

    >>> normalised(torch.tensor([[1.0, 3.0]]), 0.0)
    tensor([[-1.,  1.]])
    """
    dtype, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
    if composes() or not x.numel():
        z, _ = _z_and_r(x, eps)
    else:
        z, _ = _Normalise.apply(x, eps)
    return z.to(dtype)


def _z_and_r(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    z = x - x.mean(-1, keepdim=True)
    r = torch.rsqrt((z * z).mean(-1, keepdim=True) + eps)
    return z * r, r


class _Normalise(torch.autograd.Function):
    """x -> z, r."""

    generate_vmap_rule = True
    is_composed = True  # of operations of torch, so that nobody need check it

    @staticmethod
    def forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return _z_and_r(x, eps)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor]
    ) -> None:
        ctx.save_for_backward(*output)
        ctx.save_for_forward(*output)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        (z, r), (by_z, by_r) = ctx.saved_tensors, slopes
        return r * project(by_z, z) - by_r * r * r * z / z.shape[-1], None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> tuple[Tensor, Tensor]:
        (z, r), x = ctx.saved_tensors, tangents[0]
        return r * project(x, z), -r * r * _mean(z * x)


def project(u: Tensor, z: Tensor) -> Tensor:
    """u - mean u - z mean(z u), row by row."""
    return _Project.apply(u, z)


class _Project(torch.autograd.Function):
    generate_vmap_rule = True
    is_composed = True

    @staticmethod
    def forward(u: Tensor, z: Tensor) -> Tensor:
        zero, one = z.new_zeros((*z.shape[:-1], 1)), z.new_ones((*z.shape[:-1], 1))
        shape, only_u = [z.shape[-1]], [True, False, False]
        call = torch.ops.aten.native_layer_norm_backward
        return call(u, z, shape, zero, one, None, None, only_u)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor]:
        (u, z), g = ctx.saved_tensors, slopes[0]
        return project(g, z), -g * _mean(z * u) - u * _mean(z * g)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        (u, z), (du, dz) = ctx.saved_tensors, tangents
        result = torch.zeros_like(u) if du is None else project(du, z)
        return result if dz is None else result - dz * _mean(z * u) - z * _mean(dz * u)


def _mean(x: Tensor) -> Tensor:
    """Of each row; the factor goes to the sum, which is smaller than x."""
    return x.sum(-1, keepdim=True) / x.shape[-1]
