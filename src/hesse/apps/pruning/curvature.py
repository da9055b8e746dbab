# SPDX-License-Identifier: Apache-2.0
"""The matrix of a pruning problem at a point, by the name of a curvature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from hesse.curvature.fisher import fisher_operator
from hesse.curvature.gauss_newton import ggn_operator
from hesse.curvature.hessian import hessian_operator
from hesse.curvature.kfac import kfac_operator
from hesse.curvature.kronecker.operator import KroneckerCurvature
from hesse.errors import ArgumentError, OperatorError, check_choice
from hesse.operators.algebra import LinearOperator
from hesse.operators.batched_kronecker import Factors
from hesse.operators.dense import aslinearoperator
from hesse.risk.risk import Risk
from hesse.vectors.space import Space, Tree

Curvature = (
    Literal["ggn", "fisher", "hessian", "layers"]
    | Callable[[Risk, Tree], LinearOperator]
    | LinearOperator
    | Tensor
)
_BY_NAME = {"ggn": ggn_operator, "fisher": fisher_operator, "hessian": hessian_operator}


def is_fixed(curvature: Curvature) -> bool:
    """Whether it is one matrix, not one for each point."""
    return isinstance(curvature, (LinearOperator, Tensor))


def check_curvature(curvature: Curvature, steps: int) -> None:
    """Raise unless it is a curvature, and one for each point if there are several."""
    if is_fixed(curvature):
        if steps == 1:
            return
        raise ArgumentError(
            expected="a curvature that can be computed at every point, for several steps",
            got="one matrix",
            remedy="Give a function (risk, params) -> operator, or steps=1.",
        )
    if not callable(curvature):
        check_choice("curvature", str(curvature), [*_BY_NAME, "layers"])


def curvature_at(curvature: Curvature, risk: Risk, params: Tree, space: Space) -> LinearOperator:
    """The matrix A at params, with the weight decay of the risk in it."""
    if curvature == "layers":
        return layer_curvature(risk, params)
    if isinstance(curvature, str):
        return _BY_NAME[curvature](risk, params)
    A = curvature
    if not isinstance(A, (LinearOperator, Tensor)):
        A = A(risk, params)
    A = aslinearoperator(A)
    if A.shape != (space.n, space.n) or not A.symmetric:
        raise OperatorError(
            expected=f"curvature to be a symmetric operator of the {space.n} parameters",
            got=f"shape {A.shape}" + ("" if A.symmetric else ", not known to be symmetric"),
            remedy="Give an operator on all parameters, such as hesse.kfac_operator(risk, params).",
        )
    return A


def layer_curvature(risk: Risk, params: Tree) -> KroneckerCurvature:
    """I x H for every layer, H = 2 X X' / N the second moment of what its weights multiply.

    (w - w0)' (I x H) (w - w0) / 2 is the mean squared change of what the layer puts out.
    """
    K = kfac_operator(risk, params)
    without = [row.names[0] for row in K.blocks if row.kind != "kronecker"]
    weights = [
        replace(block, left=Factors(torch.full_like(block.left.diagonal, 2.0)))
        if block.kind == "kronecker"
        else block
        for block in K.blocks
    ]
    if len(without) == len(weights):
        raise ArgumentError(
            expected="a layer that multiplies its inputs by a weight, for curvature='layers'",
            got=f"none among {', '.join(without[:4])}",
            remedy="Use curvature='ggn'.",
        )
    return KroneckerCurvature(K.domain, weights, about="layer-wise second moments of the inputs")
