# SPDX-License-Identifier: Apache-2.0
"""Whether the gradient of f is that of its value.

A module that runs again in the backward pass, as `torch.utils.checkpoint` does, when
`torch.func.functional_call` has put its own parameters back computes the gradient of another
function, without an error. Slopes of f are compared with differences of its values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hesse.ad.variables import LeafFunction, Leaves
from hesse.errors import DerivativeError


def check_slope(f: LeafFunction, x: Leaves, value: Tensor, gradient: Leaves) -> None:
    """Raise unless slopes of f, along the gradient and in a random direction, are those of g."""
    generator = torch.Generator().manual_seed(0)
    random = [torch.randn(leaf.shape, generator=generator).to(leaf) for leaf in x]
    for u in (gradient, random):
        slope, error = _slope(f, x, [part.detach() for part in u], abs(float(value)))
        parts = zip(gradient, u, strict=True)
        expected = math.fsum(float((a * b).detach().sum()) for a, b in parts)
        if abs(slope - expected) > error + 0.02 * max(abs(slope), abs(expected)):
            raise DerivativeError(
                expected="an f whose backward pass belongs to its value",
                got=f"a slope of {slope:.6g} by differences, of {expected:.6g} by the gradient; f "
                "computes activations again (torch.utils.checkpoint), with other parameters",
                remedy="Give hesse.Risk(model, loss, data), which puts the parameters in for good, "
                "or switch checkpointing off: torch.func.functional_call takes them out too early.",
            )


def _slope(f: LeafFunction, x: Leaves, u: Leaves, size: float) -> tuple[float, float]:
    """The central difference of f along u, and how far rounding may move it."""
    eps = max(torch.finfo(leaf.dtype).eps for leaf in x)
    scale = max(float(leaf.detach().abs().max()) for leaf in x) + 1.0
    largest = max(float(part.abs().max()) for part in u) or 1.0
    h = eps ** (1 / 3) * scale / largest
    ahead, behind = (
        float(f([leaf.detach() + t * part for leaf, part in zip(x, u, strict=True)]).detach())
        for t in (h, -h)
    )
    return (ahead - behind) / (2 * h), 10 * eps * (size + 1.0) / h
