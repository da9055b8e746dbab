# SPDX-License-Identifier: Apache-2.0
"""The neural tangent kernel of a model at a point, as an operator in the space of its outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from hesse.boundary import public
from hesse.curvature.described import described
from hesse.curvature.jacobian import jacobian_operator, shared_jacobian
from hesse.curvature.point import point_of
from hesse.data.batches import Batch
from hesse.engine.options import ProductOptions
from hesse.engine.summed_product import PreparedMode
from hesse.errors import ArgumentError, ShapeError
from hesse.operators.algebra import LinearOperator
from hesse.result import OneLine
from hesse.risk.call import ModelCall
from hesse.risk.checks import check_eval_mode
from hesse.risk.risk import Risk
from hesse.tracing.precision import Precision
from hesse.vectors.space import Tree


@public("hesse.ntk_operator(risk_or_model, params)")
def ntk_operator(
    risk_or_model: Risk | nn.Module | Callable[[Any, Any], Any],
    params: Tree | None = None,
    inputs: Any = None,
    *,
    S: LinearOperator | None = None,
    mode: PreparedMode = "auto",
    precision: Precision = "highest",
) -> LinearOperator:
    r"""The tangent kernel J S J' of the outputs of a model, without the matrix.

    $$ K = J S J^T \in \mathbb{R}^{m \times m}, \qquad J = \frac{dz}{d\theta}, $$

    with z the outputs for all inputs, one entry for each example and output. S is the identity for
    the neural tangent kernel. With S the inverse of a damped curvature matrix, K is the covariance
    of the outputs of a linearised model whose parameters have the covariance S.

    Args:
        risk_or_model: a `Risk`, whose batches give the inputs; an `nn.Module`; or a callable
            (params, inputs) -> outputs.
        params: the point; of a risk or a module it may be left out, and is then the trainable
            parameters as they are now.
        inputs: one batch of inputs: a tensor, a tuple of positional or a mapping of keyword
            arguments. Needed with a model. With a `Risk` it replaces the inputs of all batches;
            with `group=` each process gives its part of them.
        S: a symmetric operator on the parameters; default the identity.
        mode, precision: as in `jacobian_operator`.

    Returns:
        A symmetric operator on vectors of outputs, and on trees like the outputs.

    Cost: J' u and J v, 1.33 gradients, and a product with S. Memory as of a Jacobian: a `Risk` with
    several batches takes one after the other.

    Raises:
        HesseError: as `jacobian_operator`; no inputs; an S that does not fit or is not symmetric.

    References: Jacot, Gabriel, Hongler 2018, arXiv:1806.07572.

    >>> import torch
    >>> model, x = nn.Linear(2, 1), torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    >>> ntk_operator(model, inputs=x).to_dense()                     # x x' + 1
    tensor([[6., 3.],
            [3., 2.]])
    """
    J = _jacobian(risk_or_model, params, inputs, mode, precision)
    if S is None:
        return J @ J.T
    if not (S.symmetric and S.shape[1] == J.shape[1]):
        raise ShapeError(
            expected=f"S to be a symmetric operator on {J.shape[1]} parameters",
            got=S._title(),
            remedy="Give an operator such as hesse.inverse_operator(G + damping * I).",
        )
    return J @ S @ J.T


def _jacobian(
    model: Any, params: Tree | None, inputs: Any, mode: PreparedMode, precision: Precision
) -> LinearOperator:
    if isinstance(model, Risk):
        params = point_of(model, params, "params")
        if inputs is None:
            return jacobian_operator(model, params, mode=mode, precision=precision)
        g = partial(model.outputs, batch=Batch(inputs, None, 1.0))
        if model.ranks is not None:
            return shared_jacobian(model.ranks, g, params, ProductOptions(mode, precision))
    elif inputs is None:
        raise ArgumentError(
            expected="inputs= for the model",
            got="none",
            remedy="Give one batch of inputs; or a hesse.Risk, which has its own.",
        )
    else:
        params = _point(model, params)
        check_eval_mode(model)
        g = ModelOutputs(ModelCall.of(model), inputs)
    return jacobian_operator(g, params, mode=mode, precision=precision)


@dataclass(frozen=True, repr=False)
class ModelOutputs(OneLine):
    """The outputs of a model for fixed inputs, as a function of its parameters."""

    call: ModelCall
    inputs: Any

    def __repr__(self) -> str:
        return f"the outputs of {described(self.call.model)}"

    def __call__(self, params: Tree) -> Any:
        with self.call.explained(params, self.inputs):
            return self.call(params, self.inputs)


def _point(model: Any, params: Tree | None) -> Tree:
    if params is not None:
        return params
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            expected="params, the point at which the model is linearised",
            got="none",
            remedy="Give the parameters that the callable takes.",
        )
    named = model.named_parameters()
    return {name: parameter.detach() for name, parameter in named if parameter.requires_grad}
