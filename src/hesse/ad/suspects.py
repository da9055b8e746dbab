# SPDX-License-Identifier: Apache-2.0
"""Operations whose backward pass may be no derivative of the forward pass.

Products are then no symmetric matrix, and what solvers make of them means nothing. torch does as it
documents, so this is seen only in what f calls:

- `embedding` with `padding_idx` gives that row no gradient, though the output depends on it.
- A hook on a tensor may put any gradient in the place of the right one. Those that torch registers
  itself, as its FLOP counter does, change none.
- Factorisations of symmetric matrices read one triangle, and have the derivative of another
  function where the matrix is not made symmetric first.
"""

from __future__ import annotations

from typing import Any

import torch

_PADDED = {torch.nn.functional.embedding, torch.embedding}
_OF_SYMMETRIC = {
    *(torch.linalg.eigh, torch.linalg.eigvalsh, torch.linalg.cholesky, torch.linalg.cholesky_ex),
    *(torch.linalg.ldl_factor, torch.linalg.ldl_factor_ex, torch.cholesky, torch.lobpcg),
}
SUSPECTS = {*_PADDED, *_OF_SYMMETRIC, torch.Tensor.register_hook}
"""What to call `suspect` for."""


def suspect(func: Any, args: tuple, kwargs: dict[str, Any]) -> dict[str, str]:
    """The name of the operation and what to do about it, if this call is one."""
    if func in _PADDED:
        index = args[2] if len(args) > 2 else kwargs.get("padding_idx")
        if index is not None and not (func is torch.embedding and index < 0):
            remedy = "Use an exact mode, where that row counts as frozen; or leave it out."
            return {"nn.Embedding with padding_idx": remedy}
    elif func is torch.Tensor.register_hook and not _is_of_torch(args[-1]):
        return {"a hook on a tensor": "Remove the hook while curvature is computed."}
    elif func in _OF_SYMMETRIC:
        name = f"torch.{func.__name__.replace('linalg_', 'linalg.')}"
        return {name: "Make its argument symmetric inside f: (A + A.mT) / 2."}
    return {}


def _is_of_torch(hook: Any) -> bool:
    return getattr(hook, "__module__", "").partition(".")[0] == "torch"
