# SPDX-License-Identifier: Apache-2.0
"""The outputs of a model for inputs or for the batches of a `Risk`, and their Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hesse.curvature.jacobian import jacobian_operator, shared_jacobian
from hesse.curvature.ntk import ModelOutputs
from hesse.curvature.operator import CurvatureOperator
from hesse.curvature.point import point_of
from hesse.data.batches import Batch
from hesse.data.slicing import num_examples
from hesse.engine.options import ProductOptions
from hesse.errors import ArgumentError, FunctionError, ShapeError, kind_of
from hesse.ranks import alike
from hesse.risk.call import ModelCall, device_of
from hesse.risk.checks import check_eval_mode
from hesse.risk.risk import Risk
from hesse.vectors.space import Space, Tree

Model = Risk | nn.Module | Callable[[Any, Any], Any]


def point_of_model(model: Model, params: Tree | None) -> Tree:
    """The parameters of a call; default those of the model as they are now."""
    if params is not None:
        return params
    if isinstance(model, Risk):
        return point_of(model, None, "params")
    if isinstance(model, nn.Module):
        named = model.named_parameters()
        return {name: parameter.detach() for name, parameter in named if parameter.requires_grad}
    raise ArgumentError(
        expected="params, the point at which the model is linearised",
        got="none",
        remedy="Give the parameters that the callable takes.",
    )


def outputs_of(model: Model, x: Any) -> Callable[[Tree], Any]:
    """The outputs for one batch of inputs, as a function of the parameters."""
    if x is None:
        raise ArgumentError(
            expected="x, the inputs of the model",
            got="none",
            remedy="Give one batch of inputs; or a hesse.Risk, which has its own.",
        )
    module = model.model if isinstance(model, Risk) else model
    if not callable(module):
        raise FunctionError(
            expected="a model: an nn.Module, a callable (params, inputs) -> outputs, or a Risk",
            got=kind_of(module),
            remedy="Give one of them.",
        )
    check_eval_mode(module)
    is_risk = isinstance(model, Risk)
    call = model.loss_of(Batch(x, None, 1.0)).call if is_risk else ModelCall.of(module)
    return ModelOutputs(call, x)


def jacobian_of(model: Model, params: Tree | None, x: Any) -> CurvatureOperator:
    """J for these inputs, or for the batches of a risk."""
    params = point_of_model(model, params)
    if isinstance(model, Risk) and x is None:
        return jacobian_operator(model, params)
    g = outputs_of(model, x)
    if isinstance(model, Risk) and model.ranks is not None:
        return shared_jacobian(model.ranks, g, params, ProductOptions())
    return jacobian_operator(g, params)


def risk_of(model: Model, params: Tree, x: Any, y: Any) -> Risk:
    """The squared loss of the model on (x, y); a `Risk` without them is itself."""
    if isinstance(model, Risk) and x is None and y is None:
        return model
    if x is None or y is None:
        raise ArgumentError(
            expected="both x and y, the inputs and the targets",
            got="no x" if x is None else "no y",
            remedy="Give both; or linearise a hesse.Risk, whose batches have both.",
        )
    module: Any = model.model if isinstance(model, Risk) else model
    ranks = model.ranks if isinstance(model, Risk) else None
    is_empty = ranks is not None and num_examples(Batch(x, y, 1.0)) == 0
    data = [] if is_empty else (x, y)
    return Risk(module, _squares, data, reduction="sum", params=params, group=ranks)


def residual_of(risk: Risk, params: Tree) -> Tensor:
    """Y - f over all batches of this process, as a flat vector."""
    params, here = risk.share.whole(params), risk.local
    space = Space.of(params, what="params")
    parts = [torch.zeros(0, dtype=space.dtype, device=space.device)]
    with alike(risk.ranks), torch.no_grad():
        for _, batch in here.batches():
            moved = batch.to(device_of(params))
            parts.append(_difference(moved.targets, here.outputs(params, moved)))
    return torch.cat(parts)


def _squares(f: Any, y: Any) -> Tensor:
    """The loss of a batch."""
    return 0.5 * _difference(y, f).square().sum()


def _difference(y: Any, f: Any) -> Tensor:
    if not isinstance(f, Tensor):
        raise ShapeError(
            expected="outputs in one tensor",
            got=kind_of(f),
            remedy="Let the model return the outputs alone.",
        )
    fits = isinstance(y, Tensor) and y.shape == f.shape and y.is_floating_point()
    if not fits:
        got = f"shape {tuple(y.shape)}, {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
        raise ShapeError(
            expected=f"targets like the outputs: shape {tuple(f.shape)}, {f.dtype}",
            got=got,
            remedy="Of class labels give torch.nn.functional.one_hot(y, C).double().",
        )
    return (y.to(f.dtype) - f).reshape(-1)
