# SPDX-License-Identifier: Apache-2.0
"""The root R of a Fisher or Gauss-Newton matrix, R R' = F, as an operator from outputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

from torch import Tensor

from hesse.ad.definition import Definition, Quantity, Vectors
from hesse.ad.fisher import LikelihoodLoss
from hesse.ad.fisher_root import FisherRootGraph, ScaledLoss
from hesse.ad.quadratic import Quadratic
from hesse.ad.summands import Summand
from hesse.boundary import public
from hesse.curvature.likelihood_sum import seen_at
from hesse.curvature.operator import CurvatureOperator
from hesse.curvature.point import point_of
from hesse.curvature.rows_of_ranks import ColumnsOfRanks
from hesse.engine.options import ProductOptions
from hesse.engine.program_cache import ProgramCache
from hesse.engine.row_layout import RowLayout
from hesse.engine.summed_product import PREPARED_MODES, PreparedMode
from hesse.errors import FunctionError, check_choice, kind_of
from hesse.result import OneLine
from hesse.risk.risk import Risk
from hesse.tracing.precision import Precision, check_precision
from hesse.vectors.space import Space, Tree


@dataclass(frozen=True)
class FisherRootDefinition(Definition):
    """R e = J' S e from the outputs to the variables, and R' v = S' J v back."""

    linearise = FisherRootGraph
    is_sum = False
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity("product", "outputs", "variables"),
        Quantity("adjoint", "variables", "outputs"),
    )


@dataclass(frozen=True, repr=False)
class RootSum(OneLine):
    """The batches of a risk, each with its weight in the loss instead of before it."""

    risk: Risk

    num_summands = property(lambda self: self.risk.num_summands)
    holds_data = property(lambda self: self.risk.holds_data)

    def __repr__(self) -> str:
        return repr(self.risk)

    @property
    def programs(self) -> ProgramCache:
        """Those of the risk."""
        return self.risk.programs

    def summands(self) -> Iterator[Summand]:
        """c_b l_b of every batch, without the weight decay."""
        for summand in self.risk.summands():
            if not isinstance(summand.function, Quadratic):
                c = summand.coefficient
                loss = LikelihoodLoss(ScaledLoss(summand.function, c), self.risk.loss_name)
                yield replace(summand, coefficient=1.0, function=loss, key=(summand.key, c))


@public("hesse.fisher_root_operator(risk, params)")
def fisher_root_operator(
    risk: Risk | Any,
    params: Tree | None = None,
    *,
    mode: PreparedMode = "auto",
    memory_budget: Literal["none"] | None = None,
    precision: Precision = "highest",
) -> CurvatureOperator:
    r"""The root R of the Fisher matrix of a risk, as a rectangular operator with an adjoint.

    $$ R R^T = F - \lambda I = \sum_i \omega_i\, J_i^T F_i J_i, \qquad
       R\, e = \sum_i \sqrt{\omega_i}\, J_i^T S_i\, e_i, \quad S_i S_i^T = F_i $$

    with F the exact Fisher matrix (`fisher_operator`), which is the Gauss-Newton matrix for
    cross-entropy, squared error, `BCEWithLogitsLoss` and `PoissonNLLLoss`. Weight decay is left
    out. With e a vector of standard normal numbers, R e is a draw from N(0, F): a draw from
    N(0, (F + c I)^-1) is then the solution of (F + c I) x = R e + sqrt(c) z, without a square root
    of the matrix.

    Args:
        risk: a `Risk` whose loss calls the loss functions of torch that are likelihoods.
        params: as in `ggn_operator`.
        memory_budget: "none" keeps no residuals from one product to the next; None as many as fit.
        mode, precision: as in `ggn_operator`.

    Returns:
        An operator R of shape (n, m), m the number of outputs of all examples. Of a risk with
        `group=` each process has the outputs of its part of the data.

    Cost: R e is a backward pass, 2/3 of a gradient; R' v is as J v of `jacobian_operator`.

    Raises:
        HesseError: a loss that is no likelihood; batches whose outputs cannot be concatenated.

    References: Papandreou & Yuille 2010, Gaussian sampling by local perturbations; Orieux, Feron &
        Giovannelli 2012, doi:10.1109/LSP.2012.2189104 (perturb and optimise).

    >>> import torch
    >>> x = torch.tensor([[1.0], [2.0]])
    >>> risk = Risk(torch.nn.Linear(1, 1, bias=False), torch.nn.MSELoss(), (x, x))
    >>> fisher_root_operator(risk, risk.params).to_dense()           # sqrt(2 / 2) (1, 2)
    tensor([[1., 2.]])
    """
    if not isinstance(risk, Risk):
        raise FunctionError(
            expected="risk to be a hesse.Risk, which knows its loss and its batches",
            got=kind_of(risk),
            remedy="Build hesse.Risk(model, loss, data). A plain function has no likelihood.",
        )
    params = point_of(risk, params, "params")
    check_choice("mode", mode, ["auto", *PREPARED_MODES])
    check_precision(precision, mode)
    options = ProductOptions(mode, precision)
    if memory_budget is not None:
        check_choice("memory_budget", memory_budget, ["none"])
        options = replace(options, kept_bytes=(0.0, 0.0))
    if risk.ranks is None:
        return _root(risk, params, options)
    part = risk.local

    def make(params: Tree) -> CurvatureOperator | None:
        return _root(part, params, options) if part.num_summands else None

    R = ColumnsOfRanks.of(*(risk.ranks, make, params, "params"), name=FisherRootDefinition().name)
    return cast(CurvatureOperator, R)  # it has all that one calls of such an operator


def _root(risk: Risk, params: Tree, options: ProductOptions) -> CurvatureOperator:
    """That of a risk in this process."""
    risk.check_at(params)
    layout = RowLayout.of([_outputs_of(risk, params, batch) for _, batch in risk.batches()])
    layouts: dict[Vectors, RowLayout] = {"outputs": layout}
    return CurvatureOperator(FisherRootDefinition(), RootSum(risk), params, options, layouts)


def _outputs_of(risk: Risk, params: Tree, batch: Any) -> Space:
    """The space of the parameters of all likelihoods of a batch."""
    loss = seen_at(risk, params, risk.loss_of(batch))
    z: list[Tensor] = [part.detach() for part in loss.z]
    return Space.of(z, what="outputs")
