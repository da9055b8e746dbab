# SPDX-License-Identifier: Apache-2.0
"""Gradients of w'y for given weights w, without a wait before the first one.

Given `grad_outputs`, `torch.autograd.grad` compares symbolic shapes, for which it imports sympy: a
third of a second in a fresh process (torch 2.13). From a scalar that has these weights for a
gradient there is nothing to compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _Weighted(torch.autograd.Function):
    """A scalar that stands for w'y, whose value nobody asks for."""

    @staticmethod
    def forward(ctx: Any, weights: Sequence[Tensor], *tensors: Tensor) -> Tensor:
        ctx.weights = weights
        return tensors[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        return None, *ctx.weights


def gradients(
    output: Tensor | Sequence[Tensor],
    x: Sequence[Tensor],
    weights: Sequence[Tensor] | Tensor | None = None,
    *,
    retain_graph: bool | None = None,
    create_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    """`torch.autograd.grad`; None for those of x that the output does not depend on.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> gradients([x * x, x], [x], [torch.ones(2), torch.tensor([0.0, 5.0])])
    (tensor([2., 9.]),)
    """
    if weights is not None:
        listed = [[part] if isinstance(part, Tensor) else part for part in (weights, output)]
        output = _Weighted.apply(listed[0], *listed[1])
    return torch.autograd.grad(output, x, None, retain_graph, create_graph, allow_unused=True)
