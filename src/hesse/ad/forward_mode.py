# SPDX-License-Identifier: Apache-2.0
"""What torch's forward mode gets wrong, and what is done about it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# torch's forward rule for these reads an intermediate result (the mean, a factorisation) as if it
# were a constant, so that the derivative of the rule is wrong, without an error (torch 2.13).
WRONG_SECOND_DERIVATIVE = frozenset(
    [
        *("batch_norm", "instance_norm", "native_layer_norm"),
        *("native_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update"),
        *("det", "logdet", "slogdet", "solve", "solve_ex", "tensorsolve", "householder_product"),
    ]
)
WRONG_FIRST_DERIVATIVE = frozenset(["cholesky_inverse", "scatter_reduce", "triangular_solve"])


class ForwardMode(TorchFunctionMode):
    """Within it, a product that uses torch's forward mode is right or fails.

    - `no_grad` means "constant". Reverse mode ignores what a function computes there; forward mode
      does not, and would silently return another product.
    - An operation whose forward rule is wrong raises NotImplementedError, as one without a rule
      does. `differentiated`: the result of forward mode is to be differentiated again.
    - The squared error, whose forward rule fails for constant targets, is spelt out.
    """

    def __init__(self, *, differentiated: bool = False) -> None:
        super().__init__()
        self._wrong = WRONG_FIRST_DERIVATIVE | (
            WRONG_SECOND_DERIVATIVE if differentiated else frozenset()
        )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`, or what stands in for it."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").removeprefix("linalg_")
        if name in self._wrong and not _is_right(name, args, kwargs):
            raise NotImplementedError(f"torch's forward-mode derivative of {name} is wrong")
        if func is torch.nn.functional.mse_loss:
            func = _mse_loss
        result = func(*args, **kwargs)
        return result if torch.is_grad_enabled() else _constant(result)


def _is_right(name: str, args: tuple, kwargs: dict) -> bool:
    """Whether the rule is right for these arguments."""
    if name in ("batch_norm", "native_batch_norm"):  # with running statistics it is affine
        return not kwargs.get("training", args[5] if len(args) > 5 else False)
    if name == "scatter_reduce":
        return kwargs.get("reduce", args[4] if len(args) > 4 else "") != "prod"
    return False


def _mse_loss(
    input: Tensor, target: Tensor, *args: Any, reduction: str = "mean", **kwargs: Any
) -> Tensor:
    if args or any(option is not None for option in kwargs.values()):
        return torch.nn.functional.mse_loss(input, target, *args, reduction=reduction, **kwargs)
    loss = (input - target) ** 2
    return {"mean": torch.mean, "sum": torch.sum}.get(reduction, lambda x: x)(loss)


def _constant(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.detach()
    if type(result) in (list, tuple):
        return type(result)(_constant(part) for part in result)
    return result
