# SPDX-License-Identifier: Apache-2.0
"""What people do with curvature. Each application is independent of the others."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hesse.apps.attribution.influence import Influence, influence
    from hesse.apps.attribution.lds import lds
    from hesse.apps.attribution.self_influence import self_influence
    from hesse.apps.implicit.argmin import argmin
    from hesse.apps.implicit.fixed_point import fixed_point
    from hesse.apps.implicit.hypergradient import Hypergradient, hypergradient
    from hesse.apps.implicit.implicit_function import ImplicitFunction
    from hesse.apps.implicit.report import ImplicitReport
    from hesse.apps.implicit.root import root
    from hesse.apps.kernels.alignment import alignment
    from hesse.apps.kernels.linearised import Linearised, LinearisedFit, linearised
    from hesse.apps.kernels.ntk import ntk
    from hesse.apps.physics.modes import Modes, modes
    from hesse.apps.physics.response import Response, response
    from hesse.apps.physics.saddle import saddle
    from hesse.apps.pruning.prune import Pruned, prune
    from hesse.apps.pruning.repair import Repair
    from hesse.apps.statistics.profile import ProfileInterval, profile
    from hesse.apps.statistics.standard_errors import StandardErrors, standard_errors
    from hesse.apps.training.history import CurvatureHistory, CurvatureMeasurement
    from hesse.apps.training.landscape import Landscape, landscape
    from hesse.apps.training.tracker import CurvatureTracker
    from hesse.apps.uncertainty.calibration import Calibration
    from hesse.apps.uncertainty.laplace import laplace
    from hesse.apps.uncertainty.predictive import Normal
    from hesse.apps.uncertainty.result import Laplace
    from hesse.apps.uncertainty.structures import LowRank

# The module of each name, imported when the name is first used.
_MODULES = {
    "Calibration": "uncertainty.calibration",
    "CurvatureHistory": "training.history",
    "CurvatureMeasurement": "training.history",
    "CurvatureTracker": "training.tracker",
    "Hypergradient": "implicit.hypergradient",
    "ImplicitFunction": "implicit.implicit_function",
    "ImplicitReport": "implicit.report",
    "Influence": "attribution.influence",
    "Landscape": "training.landscape",
    "Laplace": "uncertainty.result",
    "Linearised": "kernels.linearised",
    "LinearisedFit": "kernels.linearised",
    "LowRank": "uncertainty.structures",
    "Modes": "physics.modes",
    "Normal": "uncertainty.predictive",
    "ProfileInterval": "statistics.profile",
    "Pruned": "pruning.prune",
    "Repair": "pruning.repair",
    "Response": "physics.response",
    "StandardErrors": "statistics.standard_errors",
    "alignment": "kernels.alignment",
    "argmin": "implicit.argmin",
    "fixed_point": "implicit.fixed_point",
    "hypergradient": "implicit.hypergradient",
    "influence": "attribution.influence",
    "landscape": "training.landscape",
    "laplace": "uncertainty.laplace",
    "lds": "attribution.lds",
    "linearised": "kernels.linearised",
    "modes": "physics.modes",
    "ntk": "kernels.ntk",
    "profile": "statistics.profile",
    "prune": "pruning.prune",
    "response": "physics.response",
    "root": "implicit.root",
    "saddle": "physics.saddle",
    "self_influence": "attribution.self_influence",
    "standard_errors": "statistics.standard_errors",
}

__all__ = [
    "Calibration",
    "CurvatureHistory",
    "CurvatureMeasurement",
    "CurvatureTracker",
    "Hypergradient",
    "ImplicitFunction",
    "ImplicitReport",
    "Influence",
    "Landscape",
    "Laplace",
    "Linearised",
    "LinearisedFit",
    "LowRank",
    "Modes",
    "Normal",
    "ProfileInterval",
    "Pruned",
    "Repair",
    "Response",
    "StandardErrors",
    "alignment",
    "argmin",
    "fixed_point",
    "hypergradient",
    "influence",
    "landscape",
    "laplace",
    "lds",
    "linearised",
    "modes",
    "ntk",
    "profile",
    "prune",
    "response",
    "root",
    "saddle",
    "self_influence",
    "standard_errors",
]


def __getattr__(name: str) -> Any:
    """A public name, from the module that it lives in."""
    if name not in _MODULES:
        raise AttributeError(f"module 'hesse.apps' has no attribute {name!r}")
    module = import_module(f"hesse.apps.{_MODULES[name]}")
    return globals().setdefault(name, getattr(module, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
