# SPDX-License-Identifier: Apache-2.0
"""`influence`: what the removal of training examples does to a trained model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.apps.attribution.blocks import Blocks, examples_at
from hesse.apps.attribution.matrix import Curvature, Matrix
from hesse.apps.attribution.queries import Queries, queries_of
from hesse.apps.attribution.removal import Groups, check_newton, check_renormalises
from hesse.apps.attribution.streamed import Removal, Top, first_order, largest
from hesse.boundary import public
from hesse.checkpoint import Checkpoint, FilePath, digest, same_generator
from hesse.curvature.point import checked_point
from hesse.errors import (
    ArgumentError,
    StructureError,
    check_choice,
    check_count,
    kind_of,
)
from hesse.krylov.solution import Solution
from hesse.operators.algebra import LinearOperator
from hesse.ranks import check_same_checkpoint
from hesse.result import Result
from hesse.risk.per_example import PerExample
from hesse.risk.risk import Risk
from hesse.vectors.space import Tree


@dataclass(frozen=True, repr=False)
class Influence(Result):
    """Influences: the change of each query when an example, or a group, is removed.

    Positive: its removal raises the query, a loss that it helped to keep low.
    """

    scores: Tensor | None
    """(Q, N), or (Q, number of groups); of self-influence (N,). None where `top` was asked for.
    Where several processes share the data, N counts the examples of this process."""
    top: Top | None
    """The largest ones."""
    removal: str
    """What is done to the mean: see `influence`."""
    solution: Solution | None
    """(H + mu I)^-1 M in `x`, a block (n, Q); of Newton steps and of self-influence the last one,
    None if a checkpoint had them all."""
    products: int
    """Products with the curvature."""
    converged: bool
    """Whether all systems were solved to rtol."""


@public("hesse.apps.influence(risk, params, queries)")
def influence(
    risk: Risk,
    params: Tree | None,
    queries: Any,
    *,
    of: Literal["loss"] | Callable[[Any, Any], Tensor] = "loss",
    curvature: Curvature = "ggn",
    damping: float = 0.0,
    removal: Removal = "downweight",
    groups: Tensor | Sequence[Any] | None = None,
    top: int | None = None,
    rtol: float = 1e-2,
    preconditioner: LinearOperator | Tensor | str | None = None,
    max_products: int | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
    checkpoint: FilePath = None,
) -> Influence:
    r"""How much each query changes if a training example is removed and the model trained again.

    $$ I_{qi} = \tfrac1N\, \nabla m_q^T (H + \mu I)^{-1} g_i, \qquad
       R = \tfrac1N \sum_i \ell_i + \tfrac\lambda2 \lVert\theta\rVert^2 $$

    with H the curvature of R, **weight decay included**, and g_i the gradient of l_i, **without**
    it (`risk.per_example`). The sign: **positive where removal raises the query**, so that an
    example with a positive influence on a loss is helpful. l_i is N times what example i adds to R:
    the formula is that of a sum of losses too, with the weight decay and mu of the sum.

    | removal | the model trained again minimises | by |
    |---|---|---|
    | "downweight" | R without l_i, still divided by N | the formula above |
    | "renormalise" | the mean over the N - 1 others | (g_i - mean of all g) / (N - 1) for g_i / N |
    | "newton" | as "downweight" | one Newton step d on that function: m(theta + d) - m(theta) |

    Args:
        risk: the training risk.
        params: a minimum of it. None: the model as it is now.
        queries: data like those of the risk (another risk will do), whose examples are the queries;
            or a function of the parameters that returns a number or a vector.
        of: "loss", the loss of each query (of a mean with class weights times its weight, relative
            to their mean over the queries); or a function (outputs, targets) that returns a number
            for each, such as a margin.
        curvature: "ggn"; "hessian", better at a true minimum, but indefinite away from one;
            "ekfac", solved exactly without products; or an operator H with the weight decay in it.
        damping: mu, for the first-order formula and for Newton steps.
        removal: see above. "newton" needs groups and solves a system for each.
        groups: sets of examples that are removed together: a label for each example (-1: in none),
            or a list of sets of places. First-order influences add up; for more than some percent
            of the data, and for whole classes, "newton" is nearer (errors .19 and .94 against .05
            and .43 for a fifth of the digits).
        top: return the k largest of each query only, found while the data stream: Q k numbers
            instead of Q N.
        rtol: of the systems. The order of scores is right long before their digits are.
        preconditioner: "ekfac", or as in `solve`.
        max_products, progress, checkpoint: of the system, as in `solve`; of "newton" each group's,
            and the state is saved after every group.
        generator: of EK-FAC where it samples, and of preconditioners. With a checkpoint and none
            given, its numbers are the same in every call.

    Returns:
        Influence(scores, top, removal, solution, products, converged).

    Where several processes share the data, each has the scores of its own examples, for the queries
    of all, and gives its part of the queries (none, if they are a function). Scores of groups, and
    `top`, are of all examples, whose places are in the order of the ranks, as are those in a list
    of `groups`; labels are of the examples of this process.

    Cost: the gradients of the queries, a block of systems, and one pass over the data with a
        gradient and 2/3 of one for each query; no gradient of a training example is formed. Memory:
        the residuals of a batch, some 8 vectors for each query, and the scores.

    Raises:
        HesseError: a direction of negative curvature, where the formula has no meaning; a loss
            whose examples cannot be told apart (see `Risk.weighted`); groups of all examples;
            "renormalise" of a sum or of examples of other weights; an example whose gradient
            is not finite. Warns where a system is not solved to rtol.

    References: Koh & Liang 2017, arXiv:1703.04730 (whose formula has the opposite sign); Basu et
        al. 2020, arXiv:1911.00418 (groups); Grosse et al. 2023, arXiv:2308.03296 (EK-FAC).

    >>> x = torch.tensor([[1.0], [1.0], [2.0]]).double()             # a line through the origin
    >>> y = torch.tensor([[1.0], [2.0], [3.0]]).double()             # slope 9 / 6
    >>> from hesse.risk import Risk
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> risk = Risk(model.double(), torch.nn.MSELoss(), (x, y))
    >>> slope = {"weight": torch.tensor([[1.5]]).double()}
    >>> one = influence(risk, slope, lambda p: p["weight"].sum(), groups=[[0]], removal="newton")
    >>> one.scores                              # without the first: 8 / 5 - 9 / 6
    tensor([[0.1000]], dtype=torch.float64)
    >>> influence(risk, slope, lambda p: p["weight"].sum()).scores   # (slope - 1) / 6, ...
    tensor([[ 0.0833, -0.0833,  0.0000]], dtype=torch.float64)
    """
    risk, params, each = checked(risk, params)
    check_same_checkpoint(risk.ranks, checkpoint)
    check_choice("removal", removal, ["downweight", "renormalise", "newton"])
    count = each.number
    sets = None if groups is None else Groups.of(groups, each)
    if removal == "renormalise":
        check_renormalises(risk, count)
    if top is not None:
        check_count("top", top, 1)
    matrix = Matrix(
        *(risk, params, curvature, damping, rtol, preconditioner),
        *(max_products, same_generator(generator, checkpoint), progress),
        None if removal == "newton" else checkpoint,
    )
    m = queries_of(risk, queries, of, matrix.space)
    if removal == "newton":
        check_newton(risk, curvature, groups)
        assert sets is not None
        result = _newton(matrix, each, m, sets, checkpoint)
        if top is None:
            return result
        return replace(result, scores=None, top=largest(result["scores"], top))
    solution = matrix.solved(matrix.of(risk), m.gradients(params))
    scores, best = first_order(each, matrix, solution.x, removal, sets, top)
    return Influence(scores, best, removal, solution, solution.products, solution.converged)


def checked(risk: Any, params: Tree | None) -> tuple[Risk, Tree, PerExample]:
    """The arguments that all influences share."""
    if not isinstance(risk, Risk):
        raise StructureError(
            expected="risk to be a hesse.Risk, the function that was minimised",
            got=kind_of(risk),
            remedy="Build hesse.Risk(model, loss, data, weight_decay=...).",
        )
    params = checked_point(risk, params)
    each = risk.per_example
    if each.number < 2:
        raise ArgumentError(
            expected="at least two training examples", got="one", remedy="Give more data."
        )
    return risk, params, each


def _newton(
    matrix: Matrix, each: PerExample, m: Queries, sets: Groups, checkpoint: FilePath
) -> Influence:
    """m after one Newton step on the risk without each group, minus m before."""
    params, space, N = matrix.params, matrix.space, each.number
    before, theta = m.values(params), space.flatten(params)

    def solved(k: int) -> tuple[Tensor, Solution]:
        """The change of m without group k."""
        gone = sets.indicator(k, each.places)
        rest = matrix.of(matrix.risk.weighted(1.0 - gone))
        solution = matrix.solved(rest, each.vjp(params, gone / N)[:, None])
        return m.values(space.unflatten(theta + solution.x[:, 0])) - before, solution

    file = Checkpoint(
        *(checkpoint, matrix.of(matrix.risk)),
        function="influence",
        settings=repr((matrix.damping, matrix.rtol, matrix.max_products)),
        examples=None if checkpoint is None else examples_at(params, each),
        queries=digest(before),
        groups=digest(torch.stack([sets.examples, sets.group])),
    )
    done, solution = Blocks(solved, file).of(range(sets.number))
    scores = torch.stack(done.scores, 1)
    return Influence(scores, None, "newton", solution, done.products, done.converged)
