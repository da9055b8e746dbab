# SPDX-License-Identifier: Apache-2.0
"""How a step of `HessianFree` is proposed, and how it is judged, by its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from hesse.operators.algebra import LinearOperator
from hesse.optimize.armijo import ArmijoSearch
from hesse.optimize.current_point import CurrentPoint
from hesse.optimize.damped_gauss_newton import DampedGaussNewton
from hesse.optimize.damping_scan import DampingScan
from hesse.optimize.factory import Factory, made
from hesse.optimize.levenberg_marquardt import LevenbergMarquardt
from hesse.optimize.point import Point
from hesse.optimize.proposal import Search
from hesse.optimize.structural_damping import StructuralDamping
from hesse.optimize.subspace_step import SubspaceStep
from hesse.progress import Run
from hesse.risk.risk import Risk

# The iterations of CG in the first step of a scan, and how many more each step takes.
_FIRST_ITERATIONS, _MORE_ITERATIONS = 3, 0.3


def matrix_of(
    curvature: str | Factory,
    structural: StructuralDamping | None,
    risk: Risk,
    damping: float,
    current: CurrentPoint,
) -> Callable[[Point], LinearOperator] | None:
    """The curvature that a factory makes at a point, or that with structural damping."""
    if structural is not None:
        return lambda point: structural.at(risk, point, damping, current)
    if isinstance(curvature, str):
        return None
    return lambda point: made(curvature, risk, point.space, point.space.unflatten(point.x))


def method_of(
    group: Mapping[str, Any],
    *,
    preconditioner: Callable[[float], LinearOperator] | None,
    matrix: Callable[[Point], LinearOperator] | None,
    is_made: bool,
    start: Tensor | None,
    limits: Run,
) -> tuple[SubspaceStep | DampedGaussNewton, Search]:
    """The descent and the search of a step.

    Args:
        group: the options.
        preconditioner: lambda -> an approximation of the inverse of the curvature + lambda I.
        matrix: makes the curvature at a point; None if it is the point's own.
        is_made: whether it is of the user's making, and may have an inverse.
        start: the last solution, or the last step.
        limits: what limits leave for CG.
    """
    damping, bounds, most = group["damping"], group["damping_bounds"], group["max_cg_iterations"]
    search: Search
    if is_scan := group["damping_rule"] == "scan":
        search = DampingScan(damping, bounds=bounds)
        most = min(most, int(_FIRST_ITERATIONS + _MORE_ITERATIONS * group["steps"]))
    else:
        armijo = ArmijoSearch(c=1e-2, factor=0.8, max_trials=60)
        search = LevenbergMarquardt(damping, bounds=bounds, armijo=armijo)
    descent = SubspaceStep if is_scan or is_made or most == 0 else DampedGaussNewton
    return descent(
        preconditioner=preconditioner,
        max_iterations=most,
        matrix=matrix,
        start=start,
        limits=limits,
    ), search
