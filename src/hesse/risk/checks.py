# SPDX-License-Identifier: Apache-2.0
"""Checks that a model is a function, and that the parameters it is given fit.

A model in train mode with dropout or BatchNorm, one that draws random numbers and one that changes
with every call have no curvature: they are refused before a product is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hesse.errors import HesseError, RandomnessError, ShapeError, StructureError, kind_of
from hesse.ranks import Ranks
from hesse.risk.parallel import check_shards, hold_shards
from hesse.vectors.space import Tree


def check_module(model: Any, ranks: Ranks | None) -> None:
    """Raise for a module in train mode, or with parameters that cannot be gathered."""
    check_eval_mode(model)
    check_shards(model, ranks)


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


# --------------------------------------------------------------------------------------------------
# Parameters


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters that are trained, by name."""
    hold_shards(model)
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


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
                got=kind_of(params),
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
