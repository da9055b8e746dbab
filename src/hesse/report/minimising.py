# SPDX-License-Identifier: Apache-2.0
"""Minimise a convex function to many digits: logistic regression on the digits, two ways."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from hesse.optimize import minimize
from hesse.report.digits import digits
from hesse.risk.risk import Risk

WEIGHT_DECAY = 1e-4
TARGET = 1e-8


@dataclass
class GradientCurve:
    """The relative gradient along a run."""

    name: str
    seconds: list[float] = field(default_factory=list)
    relative_gradients: list[float] = field(default_factory=list)
    gradients: float = 0.0
    """Gradient-equivalents in all."""
    value: float = 0.0

    @property
    def reached(self) -> bool:
        """Whether the target was met."""
        return self.relative_gradients[-1] <= TARGET


def logistic_regression() -> Risk:
    """Ten classes, 650 parameters, float64, weak regularisation."""
    pixels, labels = digits(torch.float64)
    model = nn.Linear(64, 10).double()
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    return Risk(model, nn.CrossEntropyLoss(), (pixels, labels), weight_decay=WEIGHT_DECAY)


def by_newton_cg(risk: Risk, tick: Callable[[float], None]) -> GradientCurve:
    """`hesse.minimize`."""
    curve, start = GradientCurve("Newton-CG"), time.perf_counter()
    first: list[float] = []

    def watch(state) -> None:
        first.append(state.gradient_norm)
        curve.seconds.append(time.perf_counter() - start)
        curve.relative_gradients.append(state.gradient_norm / first[0])
        tick(_progress(curve.relative_gradients[-1]))

    result = minimize(risk, risk.params, rtol=TARGET, callback=watch)
    curve.seconds.append(time.perf_counter() - start)
    curve.relative_gradients.append(result.history[-1][1] / result.history[0][1])
    curve.gradients = 2 * result.nhev + result.nfev / 3 + result.njev * 2 / 3
    curve.value = result.fun
    tick(1.0)
    return curve


def by_lbfgsb(risk: Risk, tick: Callable[[float], None]) -> GradientCurve:
    """SciPy's L-BFGS-B on the same value and gradient, stopped at the same relative gradient.

    SciPy's BLAS gets one thread: its idle threads spin and take the cores from PyTorch's, which
    costs this method a factor of ten on two cores.
    """
    from scipy.optimize import minimize as scipy_minimize
    from threadpoolctl import threadpool_limits

    curve = GradientCurve("L-BFGS-B (SciPy)")
    names, shapes = list(risk.params), [p.shape for p in risk.params.values()]
    sizes = [p.numel() for p in risk.params.values()]
    norms: list[float] = []

    def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        leaves = [
            part.view(shape).requires_grad_()
            for part, shape in zip(torch.tensor(x).split(sizes), shapes, strict=True)
        ]
        value = risk(dict(zip(names, leaves, strict=True)))
        gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, leaves)])
        _note(curve, norms, gradient, start)
        return float(value.detach()), gradient.numpy()

    def watch(_: np.ndarray) -> None:
        tick(_progress(curve.relative_gradients[-1]))
        if curve.relative_gradients[-1] <= TARGET:
            raise StopIteration

    start = time.perf_counter()
    with threadpool_limits(1, user_api="blas"):
        result = scipy_minimize(
            value_and_gradient,
            np.zeros(sum(sizes)),
            jac=True,
            method="L-BFGS-B",
            callback=watch,
            options={"maxcor": 20, "maxiter": 20000, "maxfun": 40000, "ftol": 0.0, "gtol": 0.0},
        )
    curve.gradients, curve.value = float(len(norms)), float(result.fun)
    tick(1.0)
    return curve


def _note(curve: GradientCurve, norms: list[float], gradient: Tensor, start: float) -> None:
    norms.append(float(gradient.norm()))
    curve.seconds.append(time.perf_counter() - start)
    curve.relative_gradients.append(norms[-1] / norms[0])


def _progress(relative_gradient: float) -> float:
    """The fraction of the wanted digits that is reached."""
    return min(1.0, max(0.0, np.log(relative_gradient) / np.log(TARGET)))
