# SPDX-License-Identifier: Apache-2.0
"""The residuals of a `Risk` with a squared loss, whose cost is the risk itself."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hesse.errors import FunctionError
from hesse.ranks import alike
from hesse.risk.risk import Risk
from hesse.vectors.space import Tree
from hesse.vectors.trees import walk


def residuals_here(risk: Risk) -> Callable[[Tree], Tensor] | None:
    """Those of the part of a risk in this process, in one vector; None where it has no data."""
    with alike(risk.ranks):
        r = residuals_of(risk.local)
    if not risk.local.num_summands:
        return None
    return lambda params: torch.cat([part.reshape(-1) for part in r(params)])


def residuals_of(risk: Risk) -> Callable[[Tree], list[Tensor]]:
    """The function of the parameters that has half the sum of squares R(params).

    One tensor for every batch, and one for every leaf where there is weight decay.

    Raises:
        FunctionError: the loss is not `nn.MSELoss`, or examples have weights.

    >>> import torch
    >>> model = nn.Linear(1, 1, bias=False)
    >>> risk = Risk(model, nn.MSELoss(), (torch.ones(2, 1), torch.zeros(2, 1)))
    >>> residuals_of(risk)({"weight": torch.tensor([[3.0]])})        # |r|^2 / 2 = 9
    [tensor([[3.],
            [3.]])]
    """
    if not isinstance(risk.loss, nn.MSELoss) or risk.is_weighted:
        raise FunctionError(
            expected="residuals, or a Risk with the loss nn.MSELoss() and no weights",
            got=f"{risk}",
            remedy="Give lambda params: model(params, inputs) - targets, or use hesse.HessianFree.",
        )

    def r(params: Tree) -> list[Tensor]:
        parts = []
        for coefficient, batch in risk.batches():
            outputs = risk.outputs(params, batch)
            count = outputs.numel() if risk.averages else 1
            parts.append(math.sqrt(2 * coefficient / count) * (outputs - batch.targets))
        if risk.weight_decay:
            root = math.sqrt(risk.weight_decay)
            parts += [root * leaf for _, leaf in walk(params, "params")]
        return parts

    return r
