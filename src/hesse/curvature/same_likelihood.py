# SPDX-License-Identifier: Apache-2.0
"""`likelihood=`: a loss of torch that stands for one whose likelihood cannot be seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hesse.ad.hessian import value_and_gradient
from hesse.ad.variables import BoundFunction, Variables
from hesse.data.reduction import rounding_tolerance
from hesse.errors import ArgumentError, check_callable
from hesse.risk.risk import Risk
from hesse.vectors.space import Space, Tree


def with_likelihood(risk: Risk, params: Tree, loss: Callable[[Any, Any], Tensor]) -> Risk:
    """The risk with another loss, whose gradient on the first batch must be the same."""
    check_callable(likelihood=loss)
    other = risk.with_loss(loss)
    space = Space.of(params, what="params")
    variables = Variables.of(params, space)
    gradients = []
    for each in (risk, other):
        f = BoundFunction(each.loss_of(each.data.first), variables)
        _, parts = value_and_gradient(f, variables.x)
        gradients.append(variables.flatten(parts))
    ours, theirs = gradients
    size = max(space.norm(ours), space.norm(theirs)) or 1.0
    difference = space.norm(ours - theirs) / size
    if not difference <= rounding_tolerance(space.dtype):
        raise ArgumentError(
            expected=f"likelihood= with the derivative of the loss {risk.loss_name}",
            got=f"gradients on the first batch that differ by {difference:.1e} of their size",
            remedy="Give the loss of torch that it is equal to, up to a constant, with the same "
            "reduction, weights and ignored targets.",
        )
    return other
