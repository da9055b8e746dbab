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
    from hesse.apps.physics.modes import Modes, modes
    from hesse.apps.physics.response import Response, response
    from hesse.apps.physics.saddle import saddle
    from hesse.apps.pruning.prune import Pruned, prune
    from hesse.apps.pruning.repair import Repair
    from hesse.apps.statistics.profile import ProfileInterval, profile
    from hesse.apps.statistics.standard_errors import StandardErrors, standard_errors

# The module of each name, imported when the name is first used.
_MODULES = {
    "Hypergradient": "implicit.hypergradient",
    "ImplicitFunction": "implicit.implicit_function",
    "ImplicitReport": "implicit.report",
    "Influence": "attribution.influence",
    "Modes": "physics.modes",
    "ProfileInterval": "statistics.profile",
    "Pruned": "pruning.prune",
    "Repair": "pruning.repair",
    "Response": "physics.response",
    "StandardErrors": "statistics.standard_errors",
    "argmin": "implicit.argmin",
    "fixed_point": "implicit.fixed_point",
    "hypergradient": "implicit.hypergradient",
    "influence": "attribution.influence",
    "lds": "attribution.lds",
    "modes": "physics.modes",
    "profile": "statistics.profile",
    "prune": "pruning.prune",
    "response": "physics.response",
    "root": "implicit.root",
    "saddle": "physics.saddle",
    "self_influence": "attribution.self_influence",
    "standard_errors": "statistics.standard_errors",
}

__all__ = [
    "Hypergradient",
    "ImplicitFunction",
    "ImplicitReport",
    "Influence",
    "Modes",
    "ProfileInterval",
    "Pruned",
    "Repair",
    "Response",
    "StandardErrors",
    "argmin",
    "fixed_point",
    "hypergradient",
    "influence",
    "lds",
    "modes",
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
