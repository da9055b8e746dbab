# SPDX-License-Identifier: Apache-2.0
"""The generalised Gauss-Newton matrix of a risk at a point, as an operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hesse.ad.definition import CURVATURE, PRODUCT, Definition, Quantity
from hesse.ad.gauss_newton import GaussNewtonGraph
from hesse.boundary import public
from hesse.curvature.diagonals.diagonal import Diagonals
from hesse.curvature.diagonals.readers import gauss_newton_reader
from hesse.curvature.memory_budget import MemoryBudget, within_budget
from hesse.curvature.operator import CurvatureOperator
from hesse.curvature.point import point_of
from hesse.engine.options import ProductOptions
from hesse.engine.summed_product import PREPARED_MODES, PreparedMode
from hesse.errors import FunctionError, check_choice, kind_of
from hesse.risk.risk import Risk
from hesse.tracing.precision import Precision, check_precision
from hesse.vectors.space import Tree


@dataclass(frozen=True)
class GaussNewtonDefinition(Definition):
    """G v = J' H_L J v of a loss of the outputs of a model."""

    linearise = GaussNewtonGraph
    quantities: ClassVar[tuple[Quantity, ...]] = (PRODUCT, CURVATURE)

    def diagonals(self, f: Risk, x: Tree) -> Diagonals | None:
        reader = gauss_newton_reader(f, x)
        return None if reader is None else Diagonals(f, reader)


@public("hesse.ggn_operator(risk, params)")
def ggn_operator(
    risk: Risk | Any,
    params: Tree | None = None,
    *,
    mode: PreparedMode = "auto",
    memory_budget: MemoryBudget = None,
    precision: Precision = "highest",
) -> CurvatureOperator:
    r"""The generalised Gauss-Newton matrix of a risk, as a symmetric operator.

    $$ G = \sum_b c_b\, J_b^T H_b J_b + \lambda I, \qquad J_b = \frac{d z_b}{d\theta}, \quad
       H_b = \nabla_z^2 \ell_b $$

    with z_b the outputs of the model on batch b, c_b its weight and lambda the weight decay.
    Positive semi-definite when the loss is convex in the outputs.

    Args:
        risk: a `Risk`; the model's outputs must be what the loss is curved in (logits,
            predictions).
        params: the point, a tree of the names of `risk.params`; it is copied. Without one it is the
            model as it is now (`risk.params` are the parameters at construction).
        mode, memory_budget, precision: as in `hessian_operator`; there are no one-shot modes.

    Cost: 1.33 gradients a product where residuals are kept, 2.33 where a batch is taken anew.
    `G.curvature(v)` costs half. `G.value` and `G.gradient` are those of the risk. The diagonal,
    `hesse.diagonal(G)`, is exact, for 1.6 gradients with ten classes.

    Raises:
        HesseError: params not of the model; a loss that is linear in the outputs; NaN.

    References: Schraudolph 2002, doi:10.1162/08997660260028683.

    >>> import torch
    >>> x = torch.tensor([[1.0], [2.0]])
    >>> risk = Risk(torch.nn.Linear(1, 1, bias=False), torch.nn.MSELoss(), (x, x))
    >>> ggn_operator(risk, risk.params).to_dense()                   # 2 (1 + 4) / 2
    tensor([[5.]])
    """
    if not isinstance(risk, Risk):
        raise FunctionError(
            expected="risk to be a hesse.Risk, which knows its outputs, its loss and its batches",
            got=kind_of(risk),
            remedy="Build hesse.Risk(model, loss, data). A plain function has no Gauss-Newton "
            "matrix.",
        )
    params = point_of(risk, params, "params")
    check_choice("mode", mode, ["auto", *PREPARED_MODES])
    check_precision(precision, mode)
    options = ProductOptions(mode, precision)
    return within_budget(GaussNewtonDefinition(), risk, params, options, memory_budget, "params")
