# SPDX-License-Identifier: Apache-2.0
"""Eigenvalues and eigenvectors of positive semi-definite matrices, many of one size at once."""

from __future__ import annotations

import torch
from torch import Tensor


def eigenbasis(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """(values, vectors) of matrices (..., p, p); eigenvalues below zero, by rounding, are zero.

    Each matrix is scaled by its trace first, which keeps float32 within its range. Where that
    fails it is done in float64, which takes twice as long.
    """
    size = matrices.shape[-1]
    scale = matrices.diagonal(dim1=-2, dim2=-1).sum(-1) / size
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))[..., None]
    scaled = matrices / scale[..., None]
    try:
        values, vectors = torch.linalg.eigh(scaled)
    except RuntimeError:  # torch.linalg.LinAlgError
        values, vectors = torch.linalg.eigh(scaled.double())
    return scale * values.to(matrices.dtype).clamp(min=0.0), vectors.to(matrices.dtype)


def refreshed_basis(matrices: Tensor, basis: Tensor) -> Tensor:
    """An orthonormal basis nearer to the eigenvectors than `basis`: one step of subspace iteration.

    Where the matrices have changed little since `basis` was computed, that is all it takes, at a
    fraction of the cost of an eigendecomposition (Vyas et al. 2024, arXiv:2409.11321).
    """
    product = matrices @ basis
    # The largest first: what is left of small ones must not bend those that are known well.
    order = (product * basis).sum(-2).argsort(-1, descending=True)
    order = order[..., None, :].expand_as(product)
    return torch.linalg.qr(product.gather(-1, order)).Q
