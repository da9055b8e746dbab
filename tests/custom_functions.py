# SPDX-License-Identifier: Apache-2.0
"""Functions with backward passes of their own."""

import torch


class Cube(torch.autograd.Function):
    """x^3 with a backward pass that torch cannot differentiate, and no forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad
