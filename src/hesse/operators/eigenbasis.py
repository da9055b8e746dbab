# SPDX-License-Identifier: Apache-2.0
"""Eigenvalues and eigenvectors of positive semi-definite matrices, many of one size at once."""

from __future__ import annotations

import torch
from torch import Tensor


def eigenbasis(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """(values, vectors) of matrices (..., p, p); eigenvalues below zero, by rounding, are zero.

    Each matrix is scaled by its trace first, which keeps float32 within its range. Where that
    fails it is done in float64, which takes twice as long. The lower halves are read: with the
    upper ones MKL takes a twentieth less time, and returns NaN for some matrices of low rank.
    """
    size = matrices.shape[-1]
    scale = matrices.diagonal(dim1=-2, dim2=-1).sum(-1) / size
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))[..., None]
    scaled = matrices / scale[..., None]
    try:
        values, vectors = torch.linalg.eigh(scaled.mT)  # columns, as LAPACK has them
    except RuntimeError:  # torch.linalg.LinAlgError
        values, vectors = torch.linalg.eigh(scaled.double())
    return scale * values.to(matrices.dtype).clamp(min=0.0), vectors.to(matrices.dtype)


def refreshed_basis(matrices: Tensor, basis: Tensor) -> Tensor:
    """An orthonormal basis nearer to the eigenvectors than `basis`: one step of subspace iteration.

    Where the matrices have changed little since `basis` was computed, that is all it takes, at a
    fraction of the cost of an eigendecomposition (Vyas et al. 2024, arXiv:2409.11321).
    """
    products = basis.mT @ matrices  # A q in rows, as LAPACK reads columns
    # The largest first: what is left of small ones must not bend those that are known well.
    order = torch.linalg.vector_norm(products, dim=-1).argsort(-1, descending=True)
    p = order.shape[-1]
    first = torch.arange(0, order.numel(), p, device=order.device)[:, None]
    rows = (order.view(-1, p) + first).view(-1)
    products = products.reshape(-1, p).index_select(0, rows).view_as(products)
    # The triangular factor of `torch.linalg.qr` is not needed, and takes a sixth of its time.
    return torch.linalg.householder_product(*torch.geqrf(products.mT))
