# SPDX-License-Identifier: Apache-2.0
"""Operations whose backward pass may be no derivative of the forward pass.

Products are then no symmetric matrix, and what solvers make of them means nothing. torch does as it
documents, so the function is seen only in what it calls:

- `embedding` with `padding_idx` gives that row no gradient, though the output depends on it; with
  `scale_grad_by_freq` it divides gradients by counts.
- A hook on a tensor may put any gradient in the place of the right one.
- Factorisations of symmetric matrices read one triangle, and have the derivative of another
  function where the matrix is not made symmetric first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from hesse.dispatch import is_watched

_EMBEDDINGS = {
    torch.nn.functional.embedding: (2, 5),  # where padding_idx and scale_grad_by_freq are
    torch.embedding: (2, 3),
}
_OF_SYMMETRIC = {
    *(torch.linalg.eigh, torch.linalg.eigvalsh, torch.linalg.cholesky, torch.linalg.cholesky_ex),
    *(torch.linalg.ldl_factor, torch.linalg.ldl_factor_ex, torch.cholesky, torch.lobpcg),
}


class Suspects(TorchFunctionMode):
    """Within it, calls of such operations are noted, each with what to do about it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`."""
        kwargs = kwargs or {}
        if func in _EMBEDDINGS:
            self._note_embedding(func, args, kwargs)
        elif func is torch.Tensor.register_hook and not is_watched():  # not of FlopCounterMode
            self.found["a hook on a tensor"] = "Remove the hook while curvature is computed."
        elif func in _OF_SYMMETRIC:
            self.found[f"torch.{func.__name__.replace('linalg_', 'linalg.')}"] = (
                "Make its argument symmetric inside f: (A + A.mT) / 2."
            )
        return func(*args, **kwargs)

    def _note_embedding(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
        padding, scale = _EMBEDDINGS[func]
        index = _argument(args, kwargs, padding, "padding_idx")
        if index is not None and not (func is torch.embedding and index < 0):
            self.found["nn.Embedding with padding_idx"] = (
                "Use mode='auto', for which that row counts as frozen; or leave padding_idx out."
            )
        if _argument(args, kwargs, scale, "scale_grad_by_freq"):
            self.found["nn.Embedding with scale_grad_by_freq"] = (
                "Set the attribute scale_grad_by_freq of the module to False."
            )


def _argument(args: tuple, kwargs: dict[str, Any], place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs.get(name)
