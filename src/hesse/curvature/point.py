# SPDX-License-Identifier: Apache-2.0
"""The point of an operator that is asked for without one: the model as it is now."""

from __future__ import annotations

from typing import Any

from torch import nn

from hesse.errors import ArgumentError
from hesse.ranks import alike
from hesse.risk.call import alone_with
from hesse.risk.parallel import hold_shards
from hesse.risk.risk import Risk
from hesse.vectors.space import Tree


def point_of(f: Any, x: Tree | None, what: str = "x") -> Tree:
    """x, or the present parameters of the model of a `Risk`; `what` names x."""
    if x is not None:
        return x
    if not isinstance(f, Risk):
        raise ArgumentError(
            expected=f"{what}, the point at which f is differentiated",
            got="none",
            remedy=f"Give {what}; only a hesse.Risk has a point of its own, the present parameters "
            "of its model.",
        )
    if not isinstance(f.model, nn.Module):
        return f.params
    hold_shards(f.model)
    with alone_with(f.model):
        parameters = dict(f.model.named_parameters(remove_duplicate=False))
    return {name: parameters[name].detach() for name in f.params}


def checked_point(risk: Risk, params: Tree | None) -> Tree:
    """As `point_of`; there model and loss are what `Risk` says, on all processes that share it."""
    params = point_of(risk, params, "params")
    whole = risk.share.whole(params)
    with alike(risk.ranks):
        risk.check_at(whole)
    return params
