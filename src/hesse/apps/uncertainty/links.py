# SPDX-License-Identifier: Apache-2.0
r"""From Gaussian outputs, N(f, C) for each example, to predictive distributions.

| link | probabilities of classes |
|---|---|
| "probit" | softmax(f_c / sqrt(1 + pi/8 C_cc)); a sigmoid for two classes with one output |
| "bridge" | alpha / sum alpha of the Dirichlet distribution nearest to the softmax of N(f, C) |
| "draws" | the mean of softmax(f) over draws of f |

References: MacKay 1992, doi:10.1162/neco.1992.4.5.720 (probit); Hobbhahn, Kristiadi & Hennig 2022,
https://proceedings.mlr.press/v180/hobbhahn22a.html (bridge).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from hesse.apps.uncertainty.observations import Kind

Link = Literal["probit", "bridge", "draws", "network"]
LINKS: list[Link] = ["probit", "bridge", "draws", "network"]


def inverse_link(z: Tensor, kind: Kind, class_dim: int) -> Tensor:
    """The probabilities of outputs that are certain."""
    return z.sigmoid() if kind == "bernoulli" else z.softmax(class_dim)


def probit(f: Tensor, variance: Tensor, kind: Kind, class_dim: int) -> Tensor:
    """Probabilities from f and the variances of its entries, both (q, ...)."""
    return inverse_link(f / (1.0 + math.pi / 8.0 * variance).sqrt(), kind, class_dim)


def bridge(f: Tensor, C: Tensor) -> Tensor:
    """Probabilities of classes, (q, K), from f (q, K) and C (q, K, K).

    f and C are first conditioned on a sum of zero, which a softmax does not see.
    """
    K, total = f.shape[1], C.sum((1, 2))[:, None]
    rows = C.sum(2)
    f = f - rows * f.sum(1, keepdim=True) / total
    variance = C.diagonal(dim1=1, dim2=2) - rows.square() / total
    # Log space would not help: alpha itself is a sum of terms of both signs.
    alpha = (1.0 - 2.0 / K + f.exp() / K**2 * (-f).exp().sum(1, keepdim=True)) / variance
    return alpha / alpha.sum(1, keepdim=True)


def normal_draws(f: Tensor, C: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """(count, q, ...) from N(f, C) for each example, f (q, ...) and C (q, D, D)."""
    w, Q = torch.linalg.eigh(C)
    root = Q * w.clamp(min=0.0).sqrt()[:, None, :]
    device = "cpu" if generator is None else generator.device
    e = torch.randn(count, *root.shape[:2], generator=generator, dtype=C.dtype, device=device)
    return f + torch.einsum("qde,kqe->kqd", root, e.to(C.device)).reshape(count, *f.shape)
