# SPDX-License-Identifier: Apache-2.0
"""Fisher matrices of a risk, and the second moment of the gradients of its examples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hesse.ad.definition import CURVATURE, PRODUCT, Definition, Quantity
from hesse.ad.examples import Axis
from hesse.ad.fisher import Blocks, FisherGraph
from hesse.boundary import public
from hesse.curvature.diagonals.diagonal import Diagonals
from hesse.curvature.diagonals.readers import fisher_reader
from hesse.curvature.likelihood_sum import Draws, LikelihoodSum, seen_at
from hesse.curvature.memory_budget import MemoryBudget, within_budget
from hesse.curvature.operator import CurvatureOperator
from hesse.curvature.point import point_of
from hesse.curvature.rank_sum import look_here
from hesse.curvature.rows_of_examples import example_axes
from hesse.curvature.same_likelihood import with_likelihood
from hesse.engine.options import ProductOptions
from hesse.engine.summed_product import PREPARED_MODES, PreparedMode
from hesse.errors import ArgumentError, FunctionError, check_choice, kind_of
from hesse.operators.algebra import LinearOperator
from hesse.operators.low_rank import LowRankOperator
from hesse.ranks import Ranks
from hesse.risk.risk import Risk
from hesse.tracing.precision import Precision, check_precision
from hesse.vectors.random import drawn_seed
from hesse.vectors.space import Tree

FisherKind = Literal["exact", "sampled", "empirical"]

_APART = 0x9E3779B97F4A7C15  # between the seeds of two ranks, of which each batch takes one


@dataclass(frozen=True)
class FisherDefinition(Definition):
    """F v = J' B J v with a block of B for every row of the likelihoods, or for every example."""

    linearise = FisherGraph
    quantities: ClassVar[tuple[Quantity, ...]] = (PRODUCT, CURVATURE)

    blocks: Blocks
    axes: tuple[Axis, ...] | None = None
    """Where the examples are in each likelihood; None if rows count as they are."""

    @property
    def name(self) -> str:
        return "GradientMoment" if self.blocks == "gradients" else "Fisher"

    @property
    def about(self) -> str:
        if self.blocks == "gradients":
            return "second moment of the gradients of the examples"
        return f"{self.blocks}, for each {'row' if self.axes is None else 'example'}"

    def diagonals(self, f: LikelihoodSum, x: Tree) -> Diagonals | None:
        reader = fisher_reader(f, x)
        return None if reader is None else Diagonals(f, reader)

    def of(
        self, risk: Risk, params: Tree, draws: Draws | None = None, total: float | None = None
    ) -> LikelihoodSum:
        """What this is the matrix of."""
        return LikelihoodSum(risk, params, self.blocks, draws, self.axes, total)


@public("hesse.fisher_operator(risk, params, kind={kind})")
def fisher_operator(
    risk: Risk | Any,
    params: Tree | None = None,
    kind: FisherKind = "exact",
    *,
    samples: int = 1,
    per: Literal["row", "example"] = "row",
    likelihood: Callable[[Any, Any], Tensor] | None = None,
    generator: torch.Generator | None = None,
    mode: PreparedMode = "auto",
    memory_budget: MemoryBudget = None,
    precision: Precision = "highest",
) -> CurvatureOperator:
    r"""The Fisher information matrix of a risk, as a symmetric positive semi-definite operator.

    $$ F = \sum_i \omega_i\, J_i^T\, \mathrm{E}_y\!\left[s_i s_i^T\right] J_i + \lambda I, \qquad
       s_i = -\frac{\partial \log p(y \mid z_i)}{\partial z_i} $$

    where the loss is a sum of log-likelihoods of rows z_i with weights omega_i. A row is what the
    loss counts: an example, or a token. Fisher and Gauss-Newton matrix are equal for cross-entropy,
    squared error, `BCEWithLogitsLoss` and `PoissonNLLLoss`, not for `NLLLoss`, `BCELoss`,
    `GaussianNLLLoss` and `PoissonNLLLoss(log_input=False)`.

    The likelihood is seen while the loss is computed: in closures, in sums of losses, or in a model
    that computes its own loss.

    Args:
        risk: a `Risk` whose loss calls the loss functions of torch named above.
        params: as in `ggn_operator`.
        kind: "exact": the expectation over y. "sampled": the mean over `samples` draws of y from
            the model. "empirical": the observed targets instead of the expectation, with the
            weights of the exact matrix, so that it estimates the same matrix where the model is
            right. It is not `gradient_covariance_operator`, which takes the weights of the mean.
        samples: draws for each row.
        per: "row": the slopes of different rows are not multiplied with one another. "example": the
            slopes of all rows of an example are added up first, as the gradient of a sequence is
            one vector. The expectation is the same.
        likelihood: (outputs, targets) -> a scalar, such as `nn.CrossEntropyLoss()`: a loss of torch
            to be seen in the place of one that cannot. Its derivative must be that of the loss.
        generator: of the draws. They are made once: all products, and those of `F.at(x)`, are of
            the same random numbers.
        mode, memory_budget, precision: as in `ggn_operator`.

    Cost: that of a Gauss-Newton product, 1.33 gradients; no gradients of single examples. At the
    beginning the loss of the first batch, and three times more where examples must not influence
    one another. Memory: for "sampled" the outputs, `samples` times. `hesse.diagonal(F)` is exact:
    see there.

    Raises:
        HesseError: a loss that is no likelihood, or depends on the parameters by another way; for
            "empirical" and per="example", examples that influence one another.

    References: Amari 1998, doi:10.1162/089976698300017746; Kunstner, Balles, Hennig 2019,
    arXiv:1905.12558; Martens 2020, https://jmlr.org/papers/v21/17-678.html.

    >>> model, x = torch.nn.Linear(1, 1, bias=False), torch.tensor([[1.0], [2.0]])
    >>> risk = Risk(model, torch.nn.MSELoss(), (x, 3 * x))
    >>> at = {"weight": torch.ones(1, 1)}
    >>> fisher_operator(risk, at).to_dense()                         # 2 (1 + 4) / 2
    tensor([[5.]])
    >>> fisher_operator(risk, at, "empirical").to_dense()            # (4^2 + 16^2) / 2
    tensor([[136.]])
    """
    check_choice("kind", kind, ["exact", "sampled", "empirical"])
    check_choice("per", per, ["row", "example"])
    if not (isinstance(samples, int) and samples >= 1):
        raise ArgumentError(
            expected="samples to be a positive integer", got=repr(samples), remedy="Give 1 or more."
        )
    risk, params, here = _check(risk, params, mode, precision, likelihood)
    draws = axes = None
    if kind == "sampled":
        draws = Draws(samples, _seed(generator, risk.ranks))
    if kind == "empirical" or (kind == "sampled" and per == "example"):
        axes = _axes(risk, here, needed=per == "example")
    if per == "row":
        axes = None
    definition = FisherDefinition(kind, axes)
    return within_budget(
        *(definition, risk, params, ProductOptions(mode, precision), memory_budget, "params"),
        function=lambda risk: definition.of(risk, here, draws),
    )


@public("hesse.gradient_covariance_operator(risk, params, centered={centered})")
def gradient_covariance_operator(
    risk: Risk | Any,
    params: Tree | None = None,
    *,
    centered: bool = False,
    likelihood: Callable[[Any, Any], Tensor] | None = None,
    mode: PreparedMode = "auto",
    memory_budget: MemoryBudget = None,
    precision: Precision = "highest",
) -> LinearOperator:
    r"""The second moment of the gradients of the examples, or their covariance.

    $$ M = \sum_n w_n\, g_n g_n^T \quad \left[\, - g g^T, \; g = \sum_n w_n g_n \right], \qquad
       \sum_n w_n = 1 $$

    with g_n the gradient of the loss of example n and w_n the weight that the mean loss gives it:
    one over the number of examples; the number of its tokens, or the weight of its class, where the
    loss averages over these. For a loss that adds up, g_n is the gradient of what the example adds,
    and all w_n are equal. Weight decay is left out.

    Of `risk.weighted(a)` the g_n are the same, and the w_n are multiplied by a_n and divided by
    their sum: the mean, and the covariance about it, of a sample in which example n occurs a_n
    times. The risk itself divides by nothing, so that its Fisher matrices are sums instead.

    Args:
        risk, params, likelihood: as in `fisher_operator`; the loss may also be one of torch's
            without a density of targets: `l1_loss`, `smooth_l1_loss`, `huber_loss`,
            `soft_margin_loss`.
        centered: whether to subtract the outer product of the mean gradient.
        mode, memory_budget, precision: as in `ggn_operator`.

    Returns:
        A symmetric positive semi-definite operator; without `centered` a `CurvatureOperator`.

    Cost: that of a Gauss-Newton product, 1.33 gradients; centred, one gradient at the beginning; of
        a weighted risk, the losses once.

    Raises:
        HesseError: as `fisher_operator`; examples that influence one another; weights below zero,
            or all zero.

    >>> x = torch.tensor([[1.0], [2.0]])
    >>> risk = Risk(torch.nn.Linear(1, 1, bias=False), torch.nn.MSELoss(), (x, 3 * x))
    >>> at = {"weight": torch.ones(1, 1)}                            # gradients -4 and -16
    >>> gradient_covariance_operator(risk, at).to_dense()
    tensor([[136.]])
    >>> gradient_covariance_operator(risk, at, centered=True).to_dense()
    tensor([[36.]])
    """
    risk, params, here = _check(risk, params, mode, precision, likelihood, "gradients")
    axes = _axes(risk, here, needed=True, blocks="gradients")
    definition = FisherDefinition("gradients", axes)
    total = _total(definition, risk, here)
    M = within_budget(
        *(definition, risk, params, ProductOptions(mode, precision), memory_budget, "params"),
        function=lambda risk: definition.of(risk, here, total=total),
    )
    if not centered:
        return M
    g = M.flat_gradient
    return M - LowRankOperator(M.domain, g[:, None], torch.ones(1, dtype=g.dtype, device=g.device))


def _check(
    risk: Any,
    params: Tree | None,
    mode: str,
    precision: Precision,
    likelihood: Callable[[Any, Any], Tensor] | None,
    blocks: Blocks = "exact",
) -> tuple[Risk, Tree, Tree]:
    """The risk, whose loss is seen to be a likelihood on the first batch, and the point twice.

    The second one is of whole tensors, also where the parameters are sharded.
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

    whole = risk.share.whole(params)

    def look(here: Risk) -> None:
        here.check_at(whole)
        if likelihood is not None:
            here = with_likelihood(here, whole, likelihood)
        seen_at(here, whole, here.loss_of(here.data.first), blocks)

    look_here(risk, look)
    return risk if likelihood is None else risk.with_loss(likelihood), params, whole


def _axes(
    risk: Risk, params: Tree, *, needed: bool, blocks: Blocks = "exact"
) -> tuple[Axis, ...] | None:
    return look_here(risk, lambda here: example_axes(here, params, needed=needed, blocks=blocks))


def _total(definition: FisherDefinition, risk: Risk, params: Tree) -> float | None:
    """What a mean over the examples of all ranks divides by; None if all are here."""
    if risk.ranks is None:
        return None
    here = look_here(risk, lambda here: definition.of(here, params).total_here())
    return math.fsum(part for (part,) in risk.ranks.gather(here or 0.0))


def _seed(generator: torch.Generator | None, ranks: Ranks | None) -> int:
    """A seed drawn from a generator, or from the global one; another on each rank."""
    seed = drawn_seed(generator)
    return seed if ranks is None else (seed + ranks.rank * _APART) % 2**62
