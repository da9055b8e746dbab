# SPDX-License-Identifier: Apache-2.0
"""The matrix exponential, with derivatives that are as exact for large slopes as for small ones.

Its derivative along E is a block of the exponential of a larger matrix,

    exp [A E; 0 A] = [exp A, L(A, E); 0, exp A]        L linear in E,

which torch takes of E as it is: where E is 1e7 times as large as A, seven digits are lost.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _MatrixExp(torch.autograd.Function):
    generate_vmap_rule = True
    is_composed = True  # of operations of torch, so that nobody need check it

    @staticmethod
    def forward(A: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(A)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        return _along(ctx.saved_tensors[0].mH, slopes[0])

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return _along(ctx.saved_tensors[0], tangents[0])


def matrix_exp(input: Tensor) -> Tensor:
    """`torch.linalg.matrix_exp`."""
    return _MatrixExp.apply(input)


def _along(A: Tensor, E: Tensor) -> Tensor:
    """L(A, E) = s L(A, E / s), with E / s no larger than one."""
    n = A.shape[-1]
    if n == 0:
        return E
    largest = E.detach().abs().amax((-2, -1), keepdim=True)
    size = torch.where(largest == 0.0, 1.0, largest)
    upper = torch.cat([A, E / size], -1)
    lower = torch.cat([torch.zeros_like(A), A], -1)
    return size * matrix_exp(torch.cat([upper, lower], -2))[..., :n, n:]
