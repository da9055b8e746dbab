# SPDX-License-Identifier: Apache-2.0
"""`HessianFree`: train a network with its exact Gauss-Newton matrix, as a torch optimiser."""

from __future__ import annotations

import math
from collections.abc import Hashable
from contextlib import suppress
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.boundary import public, warn
from hesse.checkpoint import Checkpoint
from hesse.curvature.gauss_newton import ggn_operator
from hesse.curvature.operator import CurvatureOperator
from hesse.engine.cost_model import deterministic
from hesse.engine.summed_product import PREPARED_MODES, PreparedMode
from hesse.errors import (
    ArgumentError,
    DataError,
    DerivativeError,
    FunctionError,
    NonFiniteError,
    Status,
    check_choice,
    check_count,
    check_positive,
)
from hesse.operators.diagonal import IdentityOperator
from hesse.optimize.armijo import ArmijoSearch
from hesse.optimize.damped_gauss_newton import DampedGaussNewton
from hesse.optimize.fixed_mode import in_fixed_mode
from hesse.optimize.hessian_free_arguments import check_damping, check_decay, model_of
from hesse.optimize.hessian_free_state import HessianFreeState, Products, shapes_of
from hesse.optimize.kronecker_preconditioner import (
    KroneckerPreconditioner,
    Stored,
    first_name,
    position,
)
from hesse.optimize.levenberg_marquardt import LevenbergMarquardt
from hesse.optimize.point import Counts, Objective, Point
from hesse.optimize.proposal import take_step
from hesse.progress import FilePath, Run, uninterrupted
from hesse.risk.risk import Risk
from hesse.vectors.space import Space

# The modes that "auto" takes one of.
_MODES = ["traced-split", "retained-graph"]
# What a step may take at least: CG's start, one iteration, and what CG reserves.
_LEAST_PRODUCTS = 3


class HessianFree(torch.optim.Optimizer):
    r"""Hessian-free optimisation of a network with a Kronecker-factored preconditioner.

    A step solves the damped Gauss-Newton system

    $$ (G + \lambda I)\, p = -\nabla R(\theta), \qquad G = J^T H_L J $$

    by a few preconditioned conjugate-gradient iterations with exact products G v, goes back over
    the iterates and along the step while that lowers the risk, and adapts lambda to the ratio of
    the decrease of the risk to the decrease that the quadratic model predicts.

    Args:
        risk: the model, loss and data. The optimiser updates the trainable parameters of its model
            in place. Use all data, or large batches (1,000 examples and more) given to `step`.
        lr: the first length that the line search tries; 1 for the full step.
        damping: the first lambda; in units of the curvature of the mean loss.
        damping_bounds: the range of lambda. The lower bound matters, see `LevenbergMarquardt`.
        max_cg_iterations: of one step.
        cg_decay: fraction of the last solution that CG starts from.
        preconditioner: "kronecker" (EK-FAC of one random vector a step, averaged over steps; see
            `ekfac_operator`), or "none". A model that cannot be traced has none.
        refresh_every: steps between two estimates of the factors.
        seed: of the random vectors by which the factors are estimated.
        mode: how products are taken, the same way in all steps: "traced-split", "compiled-split" or
            "retained-graph", see `hessian_operator`. "auto" takes the first of "traced-split" and
            "retained-graph" that works; the state says which.
        max_products, max_seconds: limits of all steps together, kept within a step; the seconds
            count from the construction. Later steps leave the parameters as they are, and `status`
            says so.
        checkpoint: path of a file to which parameters and state are saved after a step. Constructed
            again with the same arguments after it was killed, the optimiser continues from the
            file: it sets the parameters of the model (see `hesse.checkpoint`).

    A run that is resumed from the checkpoint, or from `state_dict` and the model's own, continues
    bit for bit on the same machine with as many threads. `counts` holds the evaluations so far,
    `status` how the last CG solve ended, or which limit was met.

    Ctrl-C ends a step within a product: the model keeps the parameters from before the step, the
    best so far, `status` is INTERRUPTED, and KeyboardInterrupt goes on to the caller, whose loop it
    is. The next step is then the one that was interrupted.

    Cost: a step takes one gradient, max_cg_iterations Gauss-Newton products (1.33 gradients each),
        a few values, and every `refresh_every` steps one more gradient and the eigenvectors of the
        factors; one product more for every new shape of data. Memory: about 12 vectors, the stored
        iterates of CG among them, and two graphs.

    Raises:
        HesseError: as `Risk` and `ggn_operator`; NonFiniteError where the risk is not finite.

    References: Martens 2010 (ICML, "Deep learning via Hessian-free optimization"); Martens & Grosse
        2015, arXiv:1503.05671; George et al. 2018, arXiv:1806.03884.

    >>> from torch import nn
    >>> x = torch.linspace(-1, 1, 50)[:, None]
    >>> model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    >>> optimizer = HessianFree(Risk(model, nn.MSELoss(), (x, x**2)))
    >>> losses = [float(optimizer.step()) for _ in range(20)]
    >>> losses[-1] < 1e-2 * losses[0]
    True
    """

    @public("hesse.HessianFree(risk)")
    def __init__(
        self,
        risk: Risk,
        *,
        lr: float = 1.0,
        damping: float = 0.1,
        damping_bounds: tuple[float, float] = (1e-4, 1e8),
        max_cg_iterations: int = 20,
        cg_decay: float = 0.95,
        preconditioner: Literal["kronecker", "none"] = "kronecker",
        refresh_every: int = 1,
        seed: int = 0,
        mode: PreparedMode = "auto",
        max_products: int | None = None,
        max_seconds: float | None = None,
        checkpoint: FilePath = None,
    ) -> None:
        model = model_of(risk)
        check_choice("preconditioner", preconditioner, ("kronecker", "none"))
        check_positive(lr=lr)
        check_damping(damping, damping_bounds)
        check_decay(cg_decay)
        check_choice("mode", mode, ["auto", *PREPARED_MODES])
        check_count("max_cg_iterations", max_cg_iterations, 1)
        check_count("refresh_every", refresh_every, 1)
        self._limits = Run(
            "HessianFree",
            max_products=max_products,
            max_seconds=max_seconds,
            checkpoint=checkpoint,
        )
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        defaults = {
            "lr": lr,
            "damping": damping,
            "damping_bounds": damping_bounds,
            "max_cg_iterations": max_cg_iterations,
            "cg_decay": cg_decay,
            "refresh_every": refresh_every,
            "seed": seed,
            "mode": mode,
            "steps": 0,
        }
        super().__init__([{"params": [p for _, p in named]}], defaults)
        self.risk = risk
        self._names = [name for name, _ in named]
        self._space = Space.of(self._tree(), what="params")
        self._kronecker = (
            KroneckerPreconditioner(risk, self._space) if preconditioner == "kronecker" else None
        )
        self._point: tuple[Risk, Objective, Point] | None = None
        self.counts = Counts()
        self.status = Status.UNFINISHED
        self._is_auto, self._traced = mode == "auto", set[Hashable]()
        self._checkpoint = Checkpoint(
            self._limits.checkpoint,
            IdentityOperator(self._space),
            function="HessianFree",
            parameters=self._space.describe(len(self._names)),
            preconditioner=preconditioner,
            **defaults,
        )
        saved = self._saved()
        if self._checkpoint.resume(saved):
            self._resume(saved)

    @public("hesse.HessianFree.step()")
    @torch.no_grad()
    def step(self, closure: Any = None, *, data: Any = None) -> Any:
        """Take one step; returns the risk before it, a scalar tensor.

        Args:
            closure: must be None: the risk given at construction is evaluated.
            data: data for this step instead of the risk's own, in a form that `Risk` takes.
        """
        if closure is not None:
            raise ArgumentError(
                expected="no closure",
                got=f"a {type(closure).__name__}",
                remedy="The risk given at construction is evaluated; or step(data=batch).",
            )
        risk = self.risk if data is None else self.risk.on(data)
        try:
            return self._whole_step(risk)
        except DerivativeError:  # the programs are no longer those of the model
            group = self.param_groups[0]
            if not self._is_auto or group["mode"] == _MODES[-1]:
                raise
            group["mode"], self._point = _MODES[-1], None
            return self._whole_step(risk)

    def _whole_step(self, risk: Risk) -> Tensor:
        """A step, or nothing: an error or Ctrl-C leaves all as it was."""
        kronecker = self._kronecker
        blocks = None if kronecker is None else kronecker.state
        try:
            return self._step(risk)
        except BaseException as error:
            if self._kronecker is not None and blocks is not None:
                self._kronecker.state = blocks
            if isinstance(error, KeyboardInterrupt):
                self.status = Status.INTERRUPTED
                self._checkpoint.save(self._saved(), now=True)
            raise

    def _step(self, risk: Risk) -> Tensor:
        group = self.param_groups[0]
        objective, point = self._current(risk)
        if not math.isfinite(point.value):
            raise NonFiniteError(
                expected="a finite risk at the current parameters",
                got="NaN or Inf",
                remedy="Check the data and the parameters; the model has not been changed.",
            )
        value = torch.tensor(point.value, dtype=point.x.dtype)
        taken = Products(self.counts.nhev)
        if not (self._limits.goes_on(taken) and self._limits.allows(taken, _LEAST_PRODUCTS)):
            self.status, self._point = self._limits.status, (risk, objective, point)
            return value
        descent = DampedGaussNewton(
            preconditioner=self._preconditioner(risk, group),
            max_iterations=group["max_cg_iterations"],
            decay=group["cg_decay"],
            start=self._load_start(),
            limits=self._limits.rest(self.counts.nhev),
        )
        armijo = ArmijoSearch(c=1e-2, factor=0.8, max_trials=60, start=group["lr"])
        search = LevenbergMarquardt(group["damping"], bounds=group["damping_bounds"], armijo=armijo)
        new, proposal = take_step(objective, point, descent, search)
        with uninterrupted():
            self.status = proposal.status
            group["damping"], group["steps"] = search.scalar, group["steps"] + 1
            self._store_start(descent.start)
            self._store_factors()
            self._write(new.x)
            self._point = risk, objective, new
        self._checkpoint.save(self._saved())
        return value

    @public("hesse.HessianFree.load_state_dict(state_dict)")
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a saved state; the parameters are restored by the model's own."""
        super().load_state_dict(state_dict)
        self._point = None
        if self._kronecker is not None:
            self._kronecker.load(self._stored_factors())

    # -- The current point -------------------------------------------------------------------------

    def _tree(self) -> dict[str, Tensor]:
        return dict(zip(self._names, self.param_groups[0]["params"], strict=True))

    def _current(self, risk: Risk) -> tuple[Objective, Point]:
        """The risk at the model's parameters; that of the last step if nothing has changed."""
        x = self._space.flatten(self._tree())
        if self._point is not None:
            last_risk, objective, point = self._point
            if last_risk is risk and not self._space.any(point.x != x):
                return objective, point
        objective = Objective(self._operator(risk), self.counts)
        return objective, objective.start(x)

    def _operator(self, risk: Risk) -> CurvatureOperator:
        """The Gauss-Newton matrix at the model's parameters, in the mode of all steps."""
        group, tree = self.param_groups[0], self._tree()

        def make(mode: str) -> CurvatureOperator:
            return ggn_operator(risk, tree, mode=mode)  # type: ignore[arg-type]

        shapes = shapes_of(risk)
        if shapes not in self._traced:
            modes = (
                ["traced-split", "retained-graph"] if group["mode"] == "auto" else [group["mode"]]
            )
            with suppress(NonFiniteError):  # of the risk, which the step tells better
                group["mode"] = in_fixed_mode(make, modes)[1]
                self._traced.add(shapes)
        with deterministic():
            return make(group["mode"])

    def _write(self, x: Tensor) -> None:
        for parameter, leaf in zip(
            self.param_groups[0]["params"], self._space.split(x), strict=True
        ):
            parameter.copy_(leaf)

    # -- State between steps, in `self.state` so that `state_dict` saves it ------------------------

    def _preconditioner(self, risk: Risk, group: dict[str, Any]) -> KroneckerPreconditioner | None:
        """The preconditioner; its factors are estimated again every `refresh_every` steps."""
        kronecker, steps, every = self._kronecker, group["steps"], group["refresh_every"]
        if kronecker is None:
            return None
        try:
            if steps % every == 0 or kronecker.is_empty:
                past = min(1 - 1 / (steps // every + 1), 0.95)
                kronecker.refresh(risk, self._tree(), group["seed"] + steps, past)
            else:
                kronecker.ready(self._tree())
        except (FunctionError, DataError) as error:
            warn(f"no preconditioner: it needs {error.expected}, but there is {error.got}")
            self._kronecker = None
        return self._kronecker

    def _store_factors(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter].pop("factors", None)
        stored = {} if self._kronecker is None else self._kronecker.stored()
        for key, tensors in stored.items():
            name = first_name(key)
            parameter = self.param_groups[0]["params"][self._names.index(name)]
            self.state[parameter].setdefault("factors", {})[key] = tensors

    def _stored_factors(self) -> Stored:
        parameters = self.param_groups[0]["params"]
        found = [item for p in parameters for item in self.state[p].get("factors", {}).items()]
        return dict(sorted(found, key=lambda item: position(item[0])))

    def _load_start(self) -> Tensor | None:
        parts = [self.state[p].get("cg_start") for p in self.param_groups[0]["params"]]
        return None if any(part is None for part in parts) else self._space.join(parts)

    def _store_start(self, start: Tensor | None) -> None:
        parameters = self.param_groups[0]["params"]
        parts = [None] * len(parameters) if start is None else self._space.split(start)
        for parameter, part in zip(parameters, parts, strict=True):
            self.state[parameter]["cg_start"] = part

    # -- The checkpoint ----------------------------------------------------------------------------

    def _saved(self) -> HessianFreeState:
        """The state as a checkpoint saves it."""
        group, factors = self.param_groups[0], self._stored_factors()
        return HessianFreeState(
            x=self._space.flatten(self._tree()).clone(),
            cg_start=self._load_start(),
            factors=[[key, *chain(*tensors.items())] for key, tensors in factors.items()],
            counts=self.counts,
            status=self.status,
            **{name: group[name] for name in ("lr", "damping", "steps", "mode")},
        )

    @torch.no_grad()
    def _resume(self, saved: HessianFreeState) -> None:
        """Continue from a saved state."""
        group = self.param_groups[0]
        for name in ("lr", "damping", "steps", "mode"):
            group[name] = getattr(saved, name)
        self.status = saved.status
        self._write(saved.x)
        self._store_start(saved.cg_start)
        if self._kronecker is not None:
            factors = {
                key: dict(zip(rest[::2], rest[1::2], strict=True)) for key, *rest in saved.factors
            }
            self._kronecker.load(factors)
            self._store_factors()
