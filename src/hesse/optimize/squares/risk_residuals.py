# SPDX-License-Identifier: Apache-2.0
"""The residuals of a `Risk` with a squared loss, whose cost is the risk itself."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

from hesse.errors import FunctionError
from hesse.risk.risk import Risk
from hesse.risk.sharing import check_is_whole
from hesse.vectors.space import Tree
from hesse.vectors.trees import walk


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
    check_is_whole(risk)
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
