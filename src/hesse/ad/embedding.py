# SPDX-License-Identifier: Apache-2.0
"""Rows of a table, with the derivative of what comes out.

torch gives the row `padding_idx` no gradient in its backward pass though its forward mode gives it
a derivative, and with `scale_grad_by_freq` it divides gradients by counts. Here that row counts as
frozen in every mode, and nothing is scaled.
"""

from __future__ import annotations

import torch
from torch import Tensor


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """`torch.nn.functional.embedding`."""
    rows = torch.nn.functional.embedding(
        input, weight, padding_idx, max_norm, norm_type, False, sparse
    )
    return rows if padding_idx is None else _frozen(rows, input, padding_idx % len(weight))


def native_embedding(
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """`torch.embedding`, for which -1 is no row."""
    rows = torch.embedding(weight, indices, padding_idx, False, sparse)
    return rows if padding_idx < 0 else _frozen(rows, indices, padding_idx)


def _frozen(rows: Tensor, indices: Tensor, row: int) -> Tensor:
    is_frozen = (indices == row).unsqueeze(-1)
    return torch.where(is_frozen, rows.detach(), rows).contiguous()
