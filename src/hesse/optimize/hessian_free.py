# SPDX-License-Identifier: Apache-2.0
"""`HessianFree`: train a network with its curvature, as a torch optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.curvature.gauss_newton import ggn_operator
from hesse.curvature.hessian import hessian_operator
from hesse.engine.summed_product import PreparedMode
from hesse.errors import ArgumentError, DerivativeError, Status
from hesse.optimize.current_point import MORE_DAMPING, CurrentPoint, Given
from hesse.optimize.damped_gauss_newton import DampedGaussNewton
from hesse.optimize.factory import Factory
from hesse.optimize.growing_share import Growing, GrowingShare
from hesse.optimize.hessian_free_arguments import (
    check_curvature,
    check_defaults,
    check_groups,
    check_preconditioner,
    check_source,
    check_state,
    check_trainable,
    groups_of,
)
from hesse.optimize.hessian_free_method import matrix_of, method_of
from hesse.optimize.hessian_free_preconditioner import RunPreconditioner
from hesse.optimize.hessian_free_state import (
    VARYING,
    HessianFreeState,
    ParameterState,
    Products,
    checkpoint_of,
    copied,
)
from hesse.optimize.learning_rate import Scaled, rates_of
from hesse.optimize.point import Counts, Objective, Point
from hesse.optimize.proposal import Descent, Search, take_step
from hesse.optimize.shared_step import end_of_step, limits_of_step
from hesse.optimize.structural_damping import StructuralDamping, Weights
from hesse.optimize.subspace_step import SubspaceStep
from hesse.progress import FilePath, Run, uninterrupted
from hesse.risk.closure import ClosureRisk, names_of
from hesse.risk.risk import Risk
from hesse.vectors.space import Space

# What a step may take at least: the last step, one iteration of CG, and what CG reserves.
_LEAST_PRODUCTS = 3


class HessianFree(torch.optim.Optimizer):
    r"""Hessian-free optimisation of a network, by default with its Gauss-Newton matrix and EK-FAC.

    A step minimises the damped quadratic model (here with `damping_rule="scan"`)

    $$ g^T p + \tfrac12 p^T (G + \lambda I)\, p, \qquad G = J^T H_L J $$

    in the span of the last step and of a few preconditioned conjugate-gradient directions, whose
    exact products G p it takes. These give the minimiser for every other lambda too: the step is
    the one of the smallest lambda that lowers the risk nearly as much as the best.

    Args:
        risk: the model, loss and data; the trainable parameters of the model are updated in place.
            Use all data, `hesse.Growing(risk, share)`, or large batches (1,000 examples and more)
            given to `step`; with `group=` on all processes. Or parameters as any torch optimiser
            takes them, for `step(closure)`, in groups that differ in lr alone; frozen ones stay as
            they are.
        curvature: "ggn", "hessian", or a function of the risk and the parameters that returns a
            symmetric operator, such as `hesse.fisher_operator`. With one whose structure gives its
            inverse (`hesse.kfac_operator`, a diagonal) the step is -(K + lambda I)^-1 g and the
            last step, combined by the exact Gauss-Newton matrix, without CG.
        lr: what steps are multiplied by; a scheduler, or groups, may change it.
        damping: the first lambda; in units of the curvature of the mean loss.
        damping_bounds: the range of lambda.
        damping_rule: "levenberg-marquardt" takes max_cg_iterations from 0.95 of the last
            solution on, goes back over the iterates, and adapts lambda to the ratio of the decrease
            to that of the model (Martens 2010); "scan" is the above, faster in short runs.
        structural_damping: mu, for recurrent networks: mu lambda J_h' J_h is added to G, which
            damps changes of the hidden states h; it is a sum over times and units, and a mean over
            examples (Martens & Sutskever 2011, with mu = 0.03). h are the states of all times that
            nn.RNN, nn.LSTM, nn.GRU and their cells return, those of padding too unless sequences
            are packed; or what modules return first: {model.encoder: 0.03}. In a scan it keeps the
            lambda of the last step. A preconditioner is of G + lambda I alone: for mu near 1 CG
            takes fewer products with preconditioner="none".
        max_cg_iterations: of one step; a scan starts with 3 and takes 3 more every 10 steps. With 0
            a step is the preconditioned gradient and the last step, combined by the exact
            Gauss-Newton matrix (Martens & Grosse 2015, section 7): cheap steps for many batches.
        preconditioner: of CG: "ekfac" or "kfac" (of one random vector a step, averaged over steps;
            none for a model that cannot be traced), "nystrom" (20 products), "diagonal" (an
            estimate, 8 products), "none", or a function of the risk and the parameters that returns
            an approximation of the curvature whose structure gives its inverse.
        refresh_every: steps between two refreshments of the preconditioner.
        seed: of the random vectors of the preconditioner, and of the order of growing examples.
        mode: how products are taken, the same way in all steps: "traced-split", "compiled-split" or
            "retained-graph", see `hessian_operator`. "auto" takes the first of "traced-split" and
            "retained-graph" that works, "retained-graph" for closures; the state says which.
        max_products, max_seconds: limits of all steps together, kept within a step; the seconds
            count from the construction. Later steps leave the parameters as they are, and `status`
            says so.
        checkpoint: path of a file to which parameters and state are saved after a step. Constructed
            again with the same arguments after it was killed, the optimiser continues from the
            file: it sets the parameters of the model (see `hesse.checkpoint`).

    A run that is resumed from the checkpoint, or from `state_dict` and the model's own, continues
    bit for bit on the same machine with as many threads. `counts` holds the evaluations so far,
    `status` how the last CG solve ended, or which limit was met. Where no lambda lowers the risk
    the parameters stay as they are. CG ends at negative curvature, which raises lambda.

    Ctrl-C ends a step within a product: the model keeps the parameters from before the step, the
    best so far, `status` is INTERRUPTED, and KeyboardInterrupt goes on to the caller. The next step
    is then the one that was interrupted. Ctrl-C that comes while the result of a step is stored
    waits until it is: `param_groups[0]["steps"]` counts the steps that are taken.

    Cost: a step takes one gradient, max_cg_iterations Gauss-Newton products (1.33 gradients each)
        and one more, a few values, and every `refresh_every` steps one more gradient and the
        eigenvectors of the factors; without CG a product, half of another and one value; one
        product more for every new shape of data; structural damping one forward pass and half a
        product. Memory: two vectors for each iteration of CG, 10 more, and two graphs, three with
        structural damping.

    Raises:
        HesseError: as `Risk` and `ggn_operator`; NonFiniteError where the risk is not finite.

    References: Martens 2010 (ICML, "Deep learning via Hessian-free optimization"); Vinyals & Povey
        2012, arXiv:1111.4259; Martens & Sutskever 2011 (ICML, "Learning recurrent neural networks
        with Hessian-free optimization"); Martens & Grosse 2015, arXiv:1503.05671; George et al.
        2018, arXiv:1806.03884.

    >>> from torch import nn
    >>> x = torch.linspace(-1, 1, 50)[:, None]
    >>> model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    >>> optimizer = HessianFree(Risk(model, nn.MSELoss(), (x, x**2)))
    >>> losses = [float(optimizer.step()) for _ in range(20)]
    >>> losses[-1] < 1e-2 * losses[0]
    True
    """

    _is_complete = False  # groups may be added

    @public("hesse.HessianFree(risk)")
    def __init__(
        self,
        risk: Risk | Growing | Iterable[Any],
        *,
        curvature: Literal["ggn", "hessian"] | Factory = "ggn",
        lr: float = 1.0,
        damping: float = 0.1,
        damping_bounds: tuple[float, float] = (1e-4, 1e8),
        damping_rule: Literal["levenberg-marquardt", "scan"] = "levenberg-marquardt",
        structural_damping: Weights = 0.0,
        max_cg_iterations: int = 20,
        preconditioner: Literal["ekfac", "kfac", "nystrom", "diagonal", "none"] | Factory = "ekfac",
        refresh_every: int = 1,
        seed: int = 0,
        mode: PreparedMode = "auto",
        max_products: int | None = None,
        max_seconds: float | None = None,
        checkpoint: FilePath = None,
    ) -> None:
        whole, share = (risk.risk, risk.share) if isinstance(risk, Growing) else (risk, 1.0)
        groups, self._frozen, self.risk = groups_of(whole)
        check_curvature(curvature)
        check_preconditioner(preconditioner)
        self._structural = StructuralDamping.of(structural_damping, curvature, self.risk)
        self._limits = Run(
            "HessianFree",
            max_products=max_products,
            max_seconds=max_seconds,
            checkpoint=checkpoint,
        )
        if self.risk is None and mode == "auto":  # new data are new programs
            mode = "retained-graph"
        defaults = {
            "lr": lr,
            "damping": damping,
            "damping_bounds": damping_bounds,
            "damping_rule": damping_rule,
            "max_cg_iterations": max_cg_iterations,
            "refresh_every": refresh_every,
            "share": share,
            "seed": seed,
            "mode": mode,
            "steps": 0,
        }
        check_defaults(**defaults)
        check_groups(groups, defaults)
        super().__init__(groups, defaults)
        self._is_complete = True
        parameters = [p for group in self.param_groups for p in group["params"]]
        tree = dict(zip(names_of(self.param_groups), parameters, strict=True))
        ranks = None if self.risk is None else self.risk.ranks
        self._space = Space.of(tree, what="params", ranks=ranks)
        self._closures = ClosureRisk(tree) if self.risk is None else None
        self._curvature = curvature
        self._options = {  # what is in no group, for copies
            "curvature": curvature,
            "preconditioner": preconditioner,
            "structural_damping": structural_damping,
            "max_products": max_products,
            "max_seconds": max_seconds,
        }
        self.counts = Counts()
        self.status = Status.UNFINISHED
        make = hessian_operator if curvature == "hessian" else ggn_operator
        self._current = CurrentPoint(make, self._space, self.counts, mode)
        self._examples = GrowingShare(
            self.risk,
            lambda risk: Objective(make(risk, tree, mode="retained-graph")),
            self.counts,
            seed,
        )
        model = None if self.risk is None else self.risk.model
        self._parts = ParameterState(self, model, tree, self._space)
        self._preconditioner = RunPreconditioner(
            preconditioner, self._space, self._parts, of_closures=self.risk is None
        )
        damped = [] if self._structural is None else self._structural.weights
        self._checkpoint = checkpoint_of(
            *(self._limits, self._space, curvature, preconditioner, damped), **defaults
        )
        saved = self._saved()
        if self._checkpoint.resume(saved):
            self._resume(saved)

    @public("hesse.HessianFree.step()")
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, data: Any = None) -> Any:
        """Take one step; returns the risk before it, a scalar tensor, of the examples looked at.

        Args:
            closure: () -> (outputs, loss), for an optimiser of parameters. It is evaluated at many
                points, the first of which are the parameters as they are, and must compute the same
                function in all of them: draw the batch outside of it. BatchNorm in train mode takes
                all of them into its running statistics. A call of `backward` in it does nothing. It
                may return the loss alone if that is made by losses of torch. A closure costs one
                value a step, and another forward pass for every product that is prepared; `.grad`
                is not set.
            data: data for this step instead of the risk's own, in a form that `Risk` takes. Without
                CG, a step that led to where the risk of the next data has no finite gradient is
                taken back by the next one.
        """
        check_source(self.risk, closure, data)
        check_trainable(self.param_groups, self._frozen)
        group = self.param_groups[0]
        if self._closures is not None and closure is not None:
            given = Given(*self._closures.of(closure))
        elif data is None:
            given = Given(self._examples.part(group["share"]))
        else:
            assert self.risk is not None
            given = Given(self.risk.on(data), is_left=group["max_cg_iterations"] == 0)
        with limits_of_step(self._limits, self._space.ranks) as limits:
            try:
                return self._whole_step(given, limits)
            except DerivativeError:  # the programs are no longer those of the model
                if not self._current.falls_back():
                    raise
                return self._whole_step(given, limits)

    def _whole_step(self, given: Given, limits: Run) -> Tensor:
        """A step, or nothing: an error or Ctrl-C leaves all as it was."""
        state, steps = self._preconditioner.state, self.param_groups[0]["steps"]
        try:
            before = self._step(given, limits)
            end_of_step(self._space.ranks)
            return before
        except BaseException as error:
            if self.param_groups[0]["steps"] == steps:  # not interrupted after it was taken
                self._preconditioner.state = state
            if isinstance(error, KeyboardInterrupt):
                self.status = Status.INTERRUPTED
                self._checkpoint.save(self._saved(), now=True)
            raise

    def _step(self, given: Given, limits: Run) -> Tensor:
        group, risk, start = self.param_groups[0], given.risk, self._parts.vector("start")
        last = start if given.is_left else None
        objective, point, is_back = self._current.beginning(given, self._parts.x, last)
        before = torch.tensor(point.value, dtype=point.x.dtype)
        rates = rates_of(self.param_groups, self._space)
        least = _LEAST_PRODUCTS + self._structural_products
        least += self._preconditioner.products_due(group)
        taken = Products(self.counts.nhev)
        if not (limits.goes_on(taken) and limits.allows(taken, least)):
            self.status = limits.status
            self._current.keep(given, objective, point)
            return before
        if isinstance(rates, float) and rates == 0.0:
            return before
        damping = group["damping"]
        if is_back:
            start, damping = None, min(MORE_DAMPING * damping, group["damping_bounds"][1])
        descent, search = self._method(risk, point, limits, start, damping)
        is_plain = isinstance(rates, float) and rates == 1.0
        scaled: Descent = descent if is_plain else Scaled(descent, rates)
        new, proposal = take_step(objective, point, scaled, search)
        new, share = self._examples.judge(group["share"], risk, point, new)
        if isinstance(descent, SubspaceStep) and new is not point:
            descent.start = new.x - point.x
        with uninterrupted():
            self.status = proposal.status
            self._preconditioner.store(group, point)
            self._parts.store_vector("start", descent.start)
            group["damping"], group["steps"] = search.scalar, group["steps"] + 1
            group["mode"], group["share"] = self._current.mode, share
            self._parts.write(new.x)
            self._current.keep(given, objective, new)
        self._checkpoint.save(self._saved())
        return before

    @public("hesse.HessianFree.add_param_group(param_group)")
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Groups are given at construction."""
        if self._is_complete:
            raise ArgumentError(
                expected="all groups at construction",
                got="another one",
                remedy="Construct the optimiser with all groups: HessianFree([group, ...]).",
            )
        super().add_param_group(param_group)

    @public("hesse.HessianFree.load_state_dict(state_dict)")
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a saved state; the parameters are restored by the model's own."""
        check_state(state_dict, self.param_groups[0])
        super().load_state_dict(state_dict)
        self._current.forget()
        self._current.mode = self.param_groups[0]["mode"]
        self._preconditioner.forget()

    def _method(
        self, risk: Risk, point: Point, limits: Run, start: Tensor | None, damping: float
    ) -> tuple[SubspaceStep | DampedGaussNewton, Search]:
        """How a step is proposed, and how it is judged."""
        group, current = self.param_groups[0] | {"damping": damping}, self._current
        matrix = matrix_of(self._curvature, self._structural, risk, damping, current)
        is_made = callable(self._curvature)
        preconditioner = self._preconditioner.at(
            risk, point, matrix if is_made else None, group, current
        )
        return method_of(
            group,
            preconditioner=preconditioner,
            matrix=matrix,
            is_made=is_made,
            start=start,
            limits=limits.rest(self.counts.nhev + self._structural_products),
        )

    @property
    def _structural_products(self) -> int:
        return 0 if self._structural is None else self._structural.products

    # -- State -------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """A copy is constructed again, and writes no checkpoint."""
        return super().__getstate__() | {"copied": copied(self, self._options)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make a copy; or what torch does in `load_state_dict`."""
        state = dict(state)
        if "copied" in state:
            source, options, own, counts = state.pop("copied")
            HessianFree.__init__(self, source, **options)
            self.__dict__.update(own)
            self.counts.__dict__.update(counts)
            self._current.mode = state["param_groups"][0]["mode"]
        super().__setstate__(state)

    def _saved(self) -> HessianFreeState:
        """The state as a checkpoint saves it."""
        group = self.param_groups[0]
        return HessianFreeState(
            **self._parts.saved(),
            counts=self.counts,
            status=self.status,
            rates=[float(each["lr"]) for each in self.param_groups],
            **{name: group[name] for name in VARYING},
        )

    @torch.no_grad()
    def _resume(self, saved: HessianFreeState) -> None:
        """Continue from a saved state."""
        group = self.param_groups[0]
        for name in VARYING:
            group[name] = getattr(saved, name)
        for each, rate in zip(self.param_groups, saved.rates, strict=True):
            each["lr"] = rate
        self.status, self._current.mode = saved.status, saved.mode
        self._parts.restore(saved)
