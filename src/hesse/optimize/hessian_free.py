# SPDX-License-Identifier: Apache-2.0
"""`HessianFree`: train a network with its exact Gauss-Newton matrix, as a torch optimiser."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hesse.boundary import public
from hesse.curvature.gauss_newton import ggn_operator
from hesse.errors import (
    ArgumentError,
    NonFiniteError,
    Status,
    check_choice,
    check_count,
    check_positive,
)
from hesse.optimize.armijo import ArmijoSearch
from hesse.optimize.damped_gauss_newton import DampedGaussNewton
from hesse.optimize.kronecker_preconditioner import Factors, KroneckerPreconditioner
from hesse.optimize.levenberg_marquardt import LevenbergMarquardt
from hesse.optimize.point import Counts, Objective, Point
from hesse.optimize.proposal import take_step
from hesse.risk.risk import Risk
from hesse.vectors.space import Space


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
        preconditioner: "kronecker" (factors for `nn.Linear` layers, a multiple of the identity
            elsewhere), or "none".
        refresh_every: steps between two estimates of the factors.
        seed: of the random vectors by which the factors are estimated.

    A run that is resumed from `state_dict` continues bit for bit. `counts` holds the evaluations so
    far, `status` how the last CG solve ended.

    Cost: a step takes one gradient, max_cg_iterations Gauss-Newton products (1.33 gradients each),
        a few values, and every `refresh_every` steps one more gradient and the eigenvectors of the
        factors. Memory: about 12 vectors, the stored iterates of CG among them, and two graphs.

    Raises:
        HesseError: as `Risk` and `ggn_operator`; NonFiniteError where the risk is not finite.

    References: Martens 2010 (ICML, "Deep learning via Hessian-free optimization"); Martens & Grosse
        2015, arXiv:1503.05671; George et al. 2018, arXiv:1806.03884.

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
    ) -> None:
        model = _model_of(risk)
        check_choice("preconditioner", preconditioner, ("kronecker", "none"))
        check_positive(lr=lr)
        _check_damping(damping, damping_bounds)
        _check_decay(cg_decay)
        check_count("max_cg_iterations", max_cg_iterations, 1)
        check_count("refresh_every", refresh_every, 1)
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        defaults = {
            "lr": lr,
            "damping": damping,
            "damping_bounds": damping_bounds,
            "max_cg_iterations": max_cg_iterations,
            "cg_decay": cg_decay,
            "refresh_every": refresh_every,
            "seed": seed,
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
        group = self.param_groups[0]
        risk = self.risk if data is None else self.risk.on(data)
        objective, point = self._current(risk)
        if not math.isfinite(point.value):
            raise NonFiniteError(
                expected="a finite risk at the current parameters",
                got="NaN or Inf",
                remedy="Check the data and the parameters; the model has not been changed.",
            )
        descent = DampedGaussNewton(
            preconditioner=self._preconditioner(risk, group),
            max_iterations=group["max_cg_iterations"],
            decay=group["cg_decay"],
            start=self._load_start(),
        )
        armijo = ArmijoSearch(c=1e-2, factor=0.8, max_trials=60, start=group["lr"])
        search = LevenbergMarquardt(group["damping"], bounds=group["damping_bounds"], armijo=armijo)
        new, proposal = take_step(objective, point, descent, search)
        self.status = proposal.status
        group["damping"], group["steps"] = search.scalar, group["steps"] + 1
        self._store_start(descent.start)
        self._write(new.x)
        self._point = risk, objective, new
        return torch.tensor(point.value, dtype=point.x.dtype)

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
        objective = Objective(ggn_operator(risk, self._tree()), self.counts)
        return objective, objective.start(x)

    def _write(self, x: Tensor) -> None:
        for parameter, leaf in zip(
            self.param_groups[0]["params"], self._space.split(x), strict=True
        ):
            parameter.copy_(leaf)

    # -- State between steps, in `self.state` so that `state_dict` saves it ------------------------

    def _preconditioner(self, risk: Risk, group: dict[str, Any]) -> KroneckerPreconditioner | None:
        """The preconditioner; its factors are estimated again every `refresh_every` steps."""
        kronecker, steps, every = self._kronecker, group["steps"], group["refresh_every"]
        if kronecker is not None and (steps % every == 0 or not kronecker.factors):
            past = min(1 - 1 / (steps // every + 1), 0.95)
            kronecker.refresh(risk, self._tree(), group["seed"] + steps, past)
            for layer in kronecker.layers:
                if layer.name in kronecker.factors:
                    factors = kronecker.factors[layer.name]
                    self.state[layer.module.weight].update(A=factors.A, S=factors.S, d=factors.d)
        return kronecker

    def _stored_factors(self) -> dict[str, Factors]:
        assert self._kronecker is not None
        layers = [(layer.name, self.state[layer.module.weight]) for layer in self._kronecker.layers]
        return {name: Factors(s["A"], s["S"], s["d"]) for name, s in layers if "A" in s}

    def _load_start(self) -> Tensor | None:
        parts = [self.state[p].get("cg_start") for p in self.param_groups[0]["params"]]
        return None if any(part is None for part in parts) else self._space.join(parts)

    def _store_start(self, start: Tensor | None) -> None:
        parameters = self.param_groups[0]["params"]
        parts = [None] * len(parameters) if start is None else self._space.split(start)
        for parameter, part in zip(parameters, parts, strict=True):
            self.state[parameter]["cg_start"] = part


def _model_of(risk: Any) -> nn.Module:
    if isinstance(risk, Risk) and isinstance(risk.model, nn.Module):
        return risk.model
    raise ArgumentError(
        expected="a hesse.Risk of an nn.Module, whose parameters are to be trained",
        got=f"a {type(risk).__name__}" + (" of a plain callable" if isinstance(risk, Risk) else ""),
        remedy="HessianFree(hesse.Risk(model, loss, data)); to minimise a function of tensors use "
        "hesse.minimize.",
    )


def _check_damping(damping: float, bounds: tuple[float, float]) -> None:
    lower, upper = bounds
    check_positive(damping=damping)
    if not 0.0 < lower <= damping <= upper:
        raise ArgumentError(
            expected="0 < damping_bounds[0] <= damping <= damping_bounds[1]",
            got=f"damping={damping!r}, damping_bounds={bounds!r}",
            remedy="Choose bounds around the damping, or leave both out for the defaults.",
        )


def _check_decay(cg_decay: float) -> None:
    if not 0.0 <= cg_decay <= 1.0:
        raise ArgumentError(
            expected="a number 0 <= cg_decay <= 1",
            got=repr(cg_decay),
            remedy="Leave it out for the default; 0 starts every solve from zero.",
        )
