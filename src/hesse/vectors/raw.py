# SPDX-License-Identifier: Apache-2.0
"""The bytes of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor


def raw_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a dense tensor in the order of its entries, (b,); a view where it can be.

    >>> raw_bytes(torch.tensor([1, 0], dtype=torch.int16)).tolist()
    [1, 0, 0, 0]
    """
    flat = tensor.detach().contiguous().reshape(-1)
    # One entry of a strided tensor is contiguous to torch, whatever its stride (2.13).
    return flat.as_strided(flat.shape, (1,)).view(torch.uint8)
