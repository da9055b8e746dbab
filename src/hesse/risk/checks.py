# SPDX-License-Identifier: Apache-2.0
"""Checks that a model and a loss are a function, and that its arguments fit.

A model in train mode with dropout or BatchNorm, one that draws random numbers and one that changes
with every call have no curvature: they are refused before a product is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hesse.ad.determinism import run_deterministic
from hesse.ad.double_backward import noting_recomputation
from hesse.data.reduction import rounding_tolerance
from hesse.errors import (
    ArgumentError,
    HesseError,
    RandomnessError,
    ShapeError,
    StructureError,
    check_choice,
)
from hesse.risk.buffers import restoring_buffers
from hesse.risk.call import ModelCall
from hesse.vectors.space import Tree


def check_model(model: Any) -> None:
    """Raise unless the parameters of the model can be replaced."""
    if isinstance(model, torch.jit.ScriptModule):
        raise ArgumentError(
            expected="a module in Python, or a callable (params, inputs) -> outputs",
            got="a module of torch.jit, whose parameters cannot be replaced",
            remedy="Give the module that was scripted or traced.",
        )


def reduction_of(loss: Any, reduction: str | None) -> str:
    """How the loss reduces a batch: "mean" or "sum"."""
    if reduction is not None:
        check_choice("reduction", reduction, ("mean", "sum"))
        return reduction
    reduction = getattr(loss, "reduction", "mean")
    if reduction not in ("mean", "sum"):
        raise ArgumentError(
            expected="a loss that reduces a batch to a scalar: reduction 'mean' or 'sum'",
            got=f"a loss with reduction={reduction!r}",
            remedy="Construct the loss with reduction='mean'.",
        )
    return reduction


def check_weight_decay(weight_decay: Any) -> float:
    """The weight decay as a float; raises unless it is a finite number of at least 0."""
    try:
        number = float(weight_decay)
    except (TypeError, ValueError):
        number = math.nan
    if 0.0 <= number < math.inf:
        return number
    raise ArgumentError(
        expected="a number weight_decay >= 0",
        got=repr(weight_decay),
        remedy="Leave it out for none.",
    )


# --------------------------------------------------------------------------------------------------
# Randomness and memory


def check_eval_mode(model: Any) -> None:
    """Raise if a module in train mode draws random numbers or couples the examples of a batch."""
    if not isinstance(model, nn.Module):
        return
    for name, module in model.named_modules():
        if module.training and _is_random_or_coupled(module):
            raise RandomnessError(
                expected="a model whose loss is a deterministic mean over examples",
                got=f"'{name or 'the model'}' ({type(module).__name__}) in train mode",
                remedy="Call model.eval() first; curvature is then that of the deterministic "
                "model (BatchNorm with its running statistics, dropout off).",
            )


def _is_random_or_coupled(module: nn.Module) -> bool:
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)):
        return True
    rate = getattr(module, "p", None) if "Dropout" in type(module).__name__ else None
    if rate is None and isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        rate = module.dropout
    return isinstance(rate, (int, float)) and rate > 0.0


def try_call(model: Any, value: Callable[[ModelCall], Tensor]) -> tuple[ModelCall, Tensor]:
    """How the model is to be called, and a value computed with it.

    `value` is evaluated two or three times. Raises RandomnessError if it is not deterministic or
    changes from call to call.
    """
    call = ModelCall(model)
    if isinstance(model, nn.Module):
        with restoring_buffers(model) as written:
            first, recomputes = noting_recomputation(lambda: _deterministic(value, call))
        call = ModelCall(model, tuple(written), recomputes)
        first = _deterministic(value, call) if written else first
    else:
        first = _deterministic(value, call)
    second = value(call)
    if abs(first - second) > rounding_tolerance(first) * max(abs(first), abs(second)):
        raise RandomnessError(
            expected="a model that gives the same loss for the same batch",
            got=f"{float(first):.6g}, then {float(second):.6g}",
            remedy="Call model.eval(); seed or switch off noise; let forward change nothing "
            "that the next call depends on.",
        )
    return call, first


def _deterministic(value: Callable[[ModelCall], Tensor], call: ModelCall) -> Tensor:
    return run_deterministic(lambda: value(call))


# --------------------------------------------------------------------------------------------------
# Parameters


class ParameterNames:
    """The names under which a module takes parameters, with their shapes."""

    def __init__(self, model: nn.Module) -> None:
        self._known = {
            name: (parameter.shape, id(parameter))
            for name, parameter in model.named_parameters(remove_duplicate=False)
        }

    def check(self, params: Tree) -> None:
        """Raise unless params is a mapping from names to tensors of the right shapes."""
        if not isinstance(params, Mapping):
            raise StructureError(
                expected="a mapping from names to tensors, as from model.named_parameters()",
                got=f"a {type(params).__name__}",
                remedy="Use risk.params or dict(model.named_parameters()); for another form of "
                "parameters give the model as a callable (params, inputs) -> outputs.",
            )
        unknown = params.keys() - self._known.keys()
        if unknown:
            raise StructureError(
                expected=f"names of parameters of the model, such as {sorted(self._known)[:3]}",
                got=f"unknown names {sorted(unknown)[:3]}",
                remedy="Use risk.params or dict(model.named_parameters()).",
            )
        names: dict[int, str] = {}
        for name, leaf in params.items():
            shape, parameter = self._known[name]
            if names.setdefault(parameter, name) != name:
                raise _tied(names[parameter], name)
            if leaf.shape != shape:
                raise _misshapen(name, shape, leaf)


def _tied(one: str, other: str) -> HesseError:
    return StructureError(
        expected="tied parameters under one of their names",
        got=f"both {one!r} and {other!r}, which are one parameter of the model",
        remedy="Use risk.params or dict(model.named_parameters()), which have each once.",
    )


def _misshapen(name: str, shape: torch.Size, leaf: Tensor) -> HesseError:
    return ShapeError(
        expected=f"params[{name!r}] of shape {tuple(shape)}, as in the model",
        got=f"shape {tuple(leaf.shape)}",
        remedy="Use risk.params or dict(model.named_parameters()).",
    )
