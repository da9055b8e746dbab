# SPDX-License-Identifier: Apache-2.0
"""What torch's forward mode gets wrong, and what is done about it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hesse.ad.graph_nodes import graph_nodes

FORWARD_OVER_REVERSE, REVERSE_OVER_FORWARD = "forward-over-reverse", "reverse-over-forward"


class WrongRule(NamedTuple):
    """A forward rule of torch that gives a wrong product, without an error.

    Most read an intermediate result (the mean, a factorisation) as if it were a constant, so that
    the derivative of the rule is wrong.

    Args:
        operation: as torch calls it.
        modes: whose products are wrong.
        is_right: whether they are right after all, given the node of the graph.
    """

    operation: str
    modes: tuple[str, ...] = (REVERSE_OVER_FORWARD,)
    is_right: Callable[[Any], bool] | None = None


def _is_right(rule: WrongRule, node: Any) -> bool:
    return rule.is_right is not None and rule.is_right(node)


def _in_evaluation(node: Any) -> bool:
    return not node._saved_training  # with running statistics it is affine


def _in_one_batch(node: Any) -> bool:
    return node._saved_self.shape[:-2] == node._saved_input2.shape[:-2]


_BOTH = (FORWARD_OVER_REVERSE, REVERSE_OVER_FORWARD)

WRONG_FORWARD_RULES = {
    "BatchNormWithUpdate": WrongRule("_batch_norm_with_update"),
    "CholeskyInverse": WrongRule("cholesky_inverse", _BOTH),
    "CholeskySolve": WrongRule("cholesky_solve", _BOTH, _in_one_batch),
    "LinalgDet": WrongRule("det"),
    "LinalgHouseholderProduct": WrongRule("householder_product"),
    "LinalgSlogdet": WrongRule("slogdet"),
    "LinalgSolveEx": WrongRule("solve"),
    "NativeBatchNorm": WrongRule("batch_norm", is_right=_in_evaluation),
    "NativeBatchNormLegit": WrongRule("_native_batch_norm_legit", is_right=_in_evaluation),
    "NativeLayerNorm": WrongRule("native_layer_norm"),
    "ScatterReduce": WrongRule(
        "scatter_reduce", _BOTH, lambda node: node._saved_reduce not in ("prod", "multiply")
    ),
    "TriangularSolve": WrongRule("triangular_solve", _BOTH),
}
"""By the name of the node in the graph of autograd. Found with torch 2.13 by a sweep through the
database of operations that torch is tested with, which the tests repeat."""

_SUFFIX = re.compile(r"Backward\d*$")


def check_rules(value: Tensor, mode: str) -> None:
    """Raise NotImplementedError, as for a missing rule, if the graph of a value has a wrong one."""
    for node in graph_nodes(value):
        rule = WRONG_FORWARD_RULES.get(_SUFFIX.sub("", node.name()))
        if rule is not None and mode in rule.modes and not _is_right(rule, node):
            raise NotImplementedError(
                f"torch's forward-mode derivative of {rule.operation} is wrong"
            )


class ForwardMode(TorchFunctionMode):
    """Within it, a function is prepared for torch's forward mode.

    - `no_grad` means "constant". Reverse mode ignores what a function computes there; forward mode
      does not, and would silently return another product.
    - The squared error, whose forward rule fails for constant targets, is spelt out.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`, or what stands in for it."""
        kwargs = kwargs or {}
        if func is torch.nn.functional.mse_loss:
            func = _mse_loss
        result = func(*args, **kwargs)
        return result if torch.is_grad_enabled() else _constant(result)


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
