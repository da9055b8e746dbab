# SPDX-License-Identifier: Apache-2.0
"""Structural damping of `HessianFree`: its weights, and the damped curvature of a step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hesse.ad.definition import Definition
from hesse.curvature.gauss_newton import GaussNewtonDefinition
from hesse.curvature.hessian import HessianDefinition
from hesse.curvature.memory_budget import within_budget
from hesse.curvature.operator import CurvatureOperator
from hesse.curvature.structural_damping import StructuralRisk
from hesse.engine.options import ProductOptions
from hesse.engine.program_cache import ProgramCache
from hesse.errors import ArgumentError, is_number, kind_of
from hesse.operators.algebra import LinearOperator
from hesse.optimize.current_point import CurrentPoint
from hesse.optimize.point import Point
from hesse.risk.hidden_states import HiddenStates
from hesse.risk.risk import Risk

Weights = float | Mapping[nn.Module, float]
"""mu of all recurrent layers, or of the modules named."""

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


class StructuralDamping:
    """Adds mu lambda J_h' J_h to the curvature G of a step, for the hidden states h of each module.

    Args:
        weights: mu of each module.
        curvature: of the optimiser, "ggn" or "hessian".
    """

    products = 1
    """For the ratio of the decrease to that of the model, in which G is alone."""

    def __init__(self, weights: Mapping[nn.Module, float], curvature: str) -> None:
        self.weights, self._states = list(weights.values()), HiddenStates(list(weights))
        self._is_hessian = curvature == "hessian"
        self._programs = ProgramCache(1)

    @staticmethod
    def of(wanted: Weights, curvature: Any, risk: Risk | None) -> StructuralDamping | None:
        """From the argument of the optimiser; None for none."""
        weights = _weights(wanted, risk)
        if not weights:
            return None
        if not isinstance(curvature, str):
            raise ArgumentError(
                expected='curvature="ggn" or "hessian", to which structural damping can be added',
                got="a function that makes the curvature",
                remedy="Leave out curvature, or structural_damping.",
            )
        return StructuralDamping(weights, curvature)

    def at(self, risk: Risk, point: Point, damping: float, current: CurrentPoint) -> LinearOperator:
        """The curvature at a point for this lambda, without the term lambda I."""
        space = point.space
        weights = torch.tensor(self.weights, dtype=space.dtype, device=space.device) * damping

        def damped(here: Risk) -> StructuralRisk:
            return StructuralRisk(here, self._states, weights, self._programs)

        definition: Definition = (
            HessianDefinition() if self._is_hessian else GaussNewtonDefinition()
        )

        def make(mode: str) -> CurvatureOperator:
            x = space.unflatten(point.x)
            options = ProductOptions(mode)
            return within_budget(definition, risk, x, options, None, "params", function=damped)

        return point.counted(current.in_mode(make, risk, "structural damping"))


def _weights(wanted: Any, risk: Risk | None) -> dict[nn.Module, float]:
    """The weights that are not zero, by the modules whose outputs are hidden states."""
    model: Any = None if risk is None else risk.model
    if not isinstance(wanted, Mapping):
        weight = _checked(wanted)
        return dict.fromkeys(_recurrent(model), weight) if weight else {}
    known = None if model is None else set(model.modules())
    for module in wanted:
        if not isinstance(module, nn.Module) or (known is not None and module not in known):
            raise ArgumentError(
                expected="modules of the model as the keys of structural_damping",
                got=kind_of(module) + " of another model" * isinstance(module, nn.Module),
                remedy="structural_damping={model.rnn: 0.03}, with the modules of the model that "
                "the risk was given.",
            )
    weights = {module: _checked(weight) for module, weight in wanted.items()}
    return {module: weight for module, weight in weights.items() if weight}


def _checked(weight: Any) -> float:
    if is_number(weight) and 0.0 <= float(weight) < math.inf:
        return float(weight)
    raise ArgumentError(
        expected="structural_damping, or each weight in it, to be a finite number of at least 0",
        got=repr(weight),
        remedy="structural_damping=0.03, or {model.rnn: 0.03}; leave it out for none.",
    )


def _recurrent(model: Any) -> list[nn.Module]:
    """The recurrent layers of a model."""
    modules: list[nn.Module] = [] if model is None else list(model.modules())
    layers: list[nn.Module] = [each for each in modules if isinstance(each, _RECURRENT)]
    if layers:
        return layers
    raise ArgumentError(
        expected="a model with recurrent layers of torch, whose states are damped",
        got="parameters without a model" if model is None else f"{kind_of(model)} without",
        remedy="Name the modules whose outputs are the hidden states: structural_damping="
        "{model.encoder: 0.03}.",
    )
