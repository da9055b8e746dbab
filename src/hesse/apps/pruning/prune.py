# SPDX-License-Identifier: Apache-2.0
"""`prune`: set weights of a trained network to zero, and let the others make up for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from hesse.apps.pruning.curvature import Curvature, check_curvature, curvature_at
from hesse.apps.pruning.divergence import Divergence
from hesse.apps.pruning.held_out import Calibration
from hesse.apps.pruning.patterns import Pattern, sparsity_of
from hesse.apps.pruning.repair import Repair, as_repair
from hesse.apps.pruning.stages import Progress, Stages
from hesse.boundary import public
from hesse.checkpoint import Checkpoint, FilePath
from hesse.curvature.first_order import first_order
from hesse.curvature.hessian import hessian_operator
from hesse.curvature.point import checked_point
from hesse.errors import (
    ArgumentError,
    Status,
    StructureError,
    check_choice,
    check_count,
    is_number,
    kind_of,
)
from hesse.operators.algebra import LinearOperator
from hesse.operators.diagonal import DiagonalOperator, IdentityOperator
from hesse.progress import Callback, Run
from hesse.ranks import share_run_of
from hesse.result import Result
from hesse.risk.arguments import check_finite_leaves
from hesse.risk.risk import Risk
from hesse.vectors.space import Space, Tree

_TRIES = 3  # steps of a refit that find nothing better, until it ends


@dataclass(frozen=True, repr=False)
class Pruned(Result):
    """A network with zeros."""

    params: Any
    """The weights, a tree like the one given."""
    mask: Any
    """What is kept: a tree of `torch.bool`, as `torch.nn.utils.prune.custom_from_mask` takes it."""
    sparsity: float
    """The share of the weights that may be pruned that is zero."""
    predicted_increase: float
    """The increase that the quadratic models predicted, added over the steps: of the risk, or of
    the divergence from the outputs of the dense network."""
    damping: float
    """mu of the last step: given, or found by the held-out loss."""
    held_out_loss: float | None
    """The loss that chose the last mask and damping; None where nothing was held out."""
    products: int
    """Products with the curvature."""
    status: Status
    """CONVERGED: all steps were taken."""
    history: list[list[float]]
    """For each step: sparsity, damping, predicted increase, held-out loss."""


@public("hesse.apps.prune(risk, params, sparsity={sparsity})")
def prune(
    risk: Risk,
    params: Tree | None = None,
    sparsity: float | None = None,
    *,
    curvature: Curvature = "ggn",
    score: Literal["exchange", "obd", "obs", "magnitude"] = "exchange",
    repair: bool | Literal["refit"] | Repair = True,
    damping: float | None = None,
    held_out: Any = None,
    steps: int = 1,
    pattern: str = "entries",
    where: str | Sequence[str] | None = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    checkpoint: FilePath = None,
) -> Pruned:
    r"""Set weights to zero where that costs least, and change the others to make up for it.

    $$ \min_d\; g^T d + \tfrac12 d^T (A + \mu I)\, d \quad\text{with } d_P = -w_P, \qquad
       d_K = (A_{KK} + \mu I)^{-1} (A_{KP} w_P - g_K) $$

    A is the curvature of the risk at the weights w, weight decay included; g is zero in the first
    step, as at a minimum. P are the weights that go, K the others. The repair d_K is one system on
    K, for any mask; no inverse is formed.

    | score | the mask P |
    |---|---|
    | "exchange" | "obd", then exchanges of kept for removed weights that lower the repaired model |
    | "obd" | the least A_qq w_q^2 / 2 (optimal brain damage) |
    | "obs" | the least w_q^2 / (2 [A^-1]_qq) (optimal brain surgery) |
    | "magnitude" | the least weights |

    "exchange" minimises the model over the masks as well, as far as exchanges do. "obs" eliminates
    in chunks and updates A^-1; groups cost w_B' ([A^-1]_BB)^-1 w_B / 2. It is for up to 4,096
    parameters, or for a curvature that has an inverse, whose weights go at once.

    Args:
        risk: the risk on the calibration data, which may be a small part of the training data.
        params: the trained weights. None: the model as it is now. Neither is changed.
        sparsity: the share of weights that become zero, as 0.9. None with "n:m".
        curvature: "ggn", "fisher" or "hessian"; "layers", the second moments of the inputs of each
            layer, 2 X X' / N for every row (with "obs": columns eliminated one by one, all rows at
            once, every layer to the same sparsity); a function (risk, params) -> operator, such as
            `hesse.kfac_operator`; or an operator.
        score: see above; without repair "exchange" is "obd".
        repair: whether the others make up for what goes, so that the outputs stay those of the
            dense network; "refit" to lower the risk instead, with ten more steps at the end over
            what is kept, which is training; or `Repair(...)` with all options.
        damping: mu, which keeps weights near where they are; None for a search: 0.1 to 100 times
            the mean diagonal of A, then a quarter to four times the last, by the held-out loss.
        held_out: data, or a risk, that the search is judged by. None: a fifth of the examples of
            the risk; all steps are then taken again with all examples and the dampings found,
            unless the risk is the target.
        steps: each removes the same share of what is left, with a new model whose gradient g leads
            back to the outputs of the dense network.
        pattern: "entries"; "2:4" or any n:m, n of m neighbours in a row are kept; "rows", all that
            leads into a unit; "blocks", 1x4, or any "4x4".
        where: names of parameters, or patterns of names, that are pruned. Default: all of two or
            more dimensions; biases and norms are neither pruned nor counted.
        generator: of a diagonal that is sampled, and of `Repair(examples=...)`.
        callback: called after every step, of a search as well, with its `step`, `products`,
            `loss`, `damping`, the flat vectors `w` and `keep`, ...; a true result stops.
        progress, checkpoint: as in `hesse.solve`; the state is saved after every step.

    Returns:
        Pruned(params, mask, sparsity, predicted_increase, damping, ...). Of several processes all
        have the same; sharded parameters are gathered, and come back as they were cut.

    Cost: a step, for each damping: up to 11 systems for "exchange", of some 10 to 40 products each;
        one for "obd", n products and n^3 operations for "obs"; one for all dampings for
        "magnitude". The diagonal of "ggn" and "fisher" takes about two gradients. Memory: some
        20 vectors; n^2 numbers for "obs".

    Raises:
        HesseError: nothing to prune; a sparsity outside (0, 1) or not that of "n:m"; unknown
            names; an indefinite matrix; too few examples to hold some out; several steps with one
            fixed matrix.

    References: LeCun et al. 1990 (optimal brain damage); Hassibi & Stork 1993 (surgery); Foucart
        2011, doi:10.1137/100806278 (hard thresholding pursuit); Singh & Alistarh 2020,
        arXiv:2004.14340 (WoodFisher); Frantar & Alistarh 2022, arXiv:2208.11580 and 2023,
        arXiv:2301.00774 (layers); Frankle & Carbin 2018, arXiv:1803.03635 (the schedule).

    >>> x = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]]).double()
    >>> w = {"weight": torch.tensor([[2.0, 1.0]]).double()}
    >>> model = torch.nn.Linear(2, 1, bias=False).double()
    >>> risk = Risk(model, torch.nn.MSELoss(), (x, x @ w["weight"].T))
    >>> pruned = prune(risk, w, 0.5, damping=0.0)
    >>> pruned.params["weight"], pruned.mask["weight"]      # 2 + 1 / 2 makes up for the second
    (tensor([[2.5000, 0.0000]], dtype=torch.float64), tensor([[ True, False]]))
    >>> round(pruned.predicted_increase, 6), round(float(risk(pruned.params)), 6)
    (0.5, 0.5)
    """
    risk, given, params, space = _checked(risk, params)
    options, sparsity = as_repair(repair), sparsity_of(pattern, sparsity)
    check_choice("score", score, ["exchange", "obd", "obs", "magnitude"])
    check_count("steps", steps, 1)
    check_curvature(curvature, steps if options is None else steps + options.refit)
    _check_damping(damping)
    _check_refit(curvature, options)
    groups = Pattern.of(space, pattern, where, by_leaf=curvature == "layers")
    searches = damping is None and not (score == "magnitude" and options is None)
    run = Run("prune", callback=callback, progress=progress, checkpoint=checkpoint)
    share_run_of(run, risk.ranks)
    calibration = Calibration.of(risk, held_out, searches)
    divergence = Divergence(params)
    stages = Stages(calibration, space, groups, curvature, score, options, damping, divergence)
    state = _start(space, params, generator)
    fitted, judge = (  # the curvature of least squares knows no targets
        None if checkpoint is None else first_order(hessian_operator(f, params))
        for f in (risk, calibration.judge)
    )
    file = Checkpoint(
        run.checkpoint,
        _recognised(curvature, risk, params, space, checkpoint),
        function="prune",
        options=repr((sparsity, score, options, damping, steps, pattern, where)),
        params=state.w,
        fitted=fitted,
        judge=judge,
    )
    targets = _targets(sparsity, steps)
    status = _run(run, stages, state, file, targets, 0 if options is None else options.refit)
    return _result(stages, state, status, given)


def _targets(sparsity: float, steps: int) -> list[float]:
    """The sparsity after each step, which removes the same share of what is left."""
    return [1.0 - (1.0 - sparsity) ** (t / steps) for t in range(1, steps)] + [sparsity]


def _run(
    run: Run, stages: Stages, state: Progress, file: Checkpoint, targets: list[float], refits: int
) -> Status:
    """Take the steps that are left: to each of the targets, and then those of a refit."""
    start = state.w
    file.resume(state)
    with run:
        while True:
            planned = len(state.found) or len(targets) + refits
            if state.step == planned or state.failures == _TRIES:
                if state.found or not stages.repeats:
                    return Status.CONVERGED
                state.restart(start)
            if state.step < len(targets):
                stages.prune(state, targets[state.step])
            else:
                stages.refit(state)
            file.save(state)
            goes_on, ranks = run.after_step(state), stages.calibration.risk.ranks
            if ranks is not None:
                ranks.meet()
                goes_on = run.goes_on(state)
            if not goes_on:
                return run.status
    return run.status


def _checked(risk: Any, params: Tree | None) -> tuple[Risk, Space, Tree, Space]:
    """The risk; the space of the parameters that were given; these, whole, and their space."""
    if not isinstance(risk, Risk):
        raise StructureError(
            expected="risk to be a hesse.Risk on the calibration data",
            got=kind_of(risk),
            remedy="Build hesse.Risk(model, loss, data).",
        )
    params = checked_point(risk, params)
    given = Space.of(params, what="params", ranks=risk.ranks)
    params = given.whole_tree(params)
    space = Space.of(params, what="params", ranks=risk.ranks)
    check_finite_leaves(params, space, "weights", "Train the network first, or again.")
    return risk, given, params, space


def _check_damping(damping: float | None) -> None:
    if damping is None or (is_number(damping) and 0.0 <= damping < math.inf):
        return
    raise ArgumentError(
        expected="damping, the mu >= 0 of A + mu I",
        got=repr(damping),
        remedy="Leave it out to search for one by the loss of held-out data.",
    )


def _check_refit(curvature: Curvature, options: Repair | None) -> None:
    """The outputs of layers, which "layers" is about, are not those of the network."""
    if curvature == "layers" and options and options.refit and options.target == "outputs":
        raise ArgumentError(
            expected="another curvature than 'layers' for a refit that follows the outputs",
            got=repr(options),
            remedy="Use curvature='ggn', or Repair(target='risk', refit=...).",
        )


def _start(space: Space, params: Tree, generator: torch.Generator | None) -> Progress:
    w = space.flatten(params, what="params").detach().clone()
    seed = 0
    if generator is not None:
        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    return Progress(w, torch.ones_like(w, dtype=torch.bool), seed=seed)


def _recognised(
    curvature: Curvature, risk: Risk, params: Tree, space: Space, checkpoint: FilePath
) -> LinearOperator:
    """The operator by which a checkpoint recognises its run."""
    if checkpoint is None:
        return IdentityOperator(space)
    A = curvature_at(curvature, risk, params, space)
    if A.domain.ranks is space.ranks:
        return A
    return DiagonalOperator(space, A._matvec(space.zeros() + 1.0))  # one of the processes writes


def _result(stages: Stages, state: Progress, status: Status, given: Space) -> Pruned:
    keep = given.part(state.keep).split(given.sizes)
    masks = [mask.view(shape) for mask, shape in zip(keep, given.shapes, strict=True)]
    return Pruned(
        params=given.unflatten(given.part(state.w)),
        mask=given.build(masks),
        sparsity=1.0 - float(state.keep[stages.pattern.prunable].double().mean()),
        predicted_increase=state.increase,
        damping=state.history[-1][1] if state.history else state.damping,
        held_out_loss=None if math.isnan(state.loss) else state.loss,
        products=state.products,
        status=status,
        history=state.history,
    )
