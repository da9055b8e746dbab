# SPDX-License-Identifier: Apache-2.0
"""Checks of the arguments of `HessianFree`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from hesse.engine.summed_product import PREPARED_MODES
from hesse.errors import (
    ArgumentError,
    OperatorError,
    check_choice,
    check_count,
    check_positive,
    kind_of,
)
from hesse.operators.algebra import LinearOperator
from hesse.optimize.preconditioners import NAMES
from hesse.risk.closure import names_of
from hesse.risk.parallel import hold_shards
from hesse.risk.risk import Risk

RULES = ("levenberg-marquardt", "scan")


# What groups of torch's own optimisers set, and a step of this one would pass over in silence.
_OF_OTHERS = ("weight_decay", "momentum", "betas", "eps", "maximize", "nesterov", "dampening")


def groups_of(source: Any) -> tuple[list[Any], list[Any], Risk | None]:
    """The groups of parameters that are trained, those that are frozen, and the risk if given."""
    if isinstance(source, Risk):
        if isinstance(source.model, nn.Module):
            hold_shards(source.model)
            named = list(source.model.named_parameters())
            return [{"params": _trainable(named)}], _frozen(named), source
        got = "a Risk of a plain callable"
    elif isinstance(source, Iterable) and not isinstance(source, (Tensor, nn.Module, str, bytes)):
        groups = list(source)
        if groups and all(map(_is_parameter, groups)):
            groups = [_listed(group) for group in groups]
            trainable = _trainable(groups)
            if trainable:
                return trainable, _frozen(groups), None
        got = f"{kind_of(source)} of something else" if groups else "no parameters"
        if groups and all(map(_is_parameter, groups)):
            got = "parameters of which none requires a gradient"
    else:
        got = kind_of(source)
    raise ArgumentError(
        expected="a hesse.Risk of an nn.Module, whose parameters are to be trained, or the "
        "parameters themselves, as model.parameters()",
        got=got,
        remedy="HessianFree(hesse.Risk(model, loss, data)), or HessianFree(model.parameters()) "
        "and step(closure); to minimise a function of tensors use hesse.minimize.",
    )


def _listed(group: Any) -> Any:
    """A group with a list of parameters, which may be a generator, or a parameter as it is."""
    if not isinstance(group, dict) or "params" not in group:
        return group  # torch says what is wrong
    params = group["params"]
    return {**group, "params": [params] if isinstance(params, Tensor) else list(params)}


def _trainable(groups: list[Any]) -> list[Any]:
    """The parameters, or the groups of them, that require gradients; frozen ones are constants."""
    if not any(isinstance(group, dict) for group in groups):
        return [p for p in groups if _requires_gradient(p)]
    found = []
    for group in groups:
        if not isinstance(group, dict) or "params" not in group:
            found.append(group)
            continue
        left = [p for p in group["params"] if _requires_gradient(p)]
        found += [{**group, "params": left}] if left or not group["params"] else []
    return found


def _frozen(groups: list[Any]) -> list[Tensor]:
    """The parameters that require no gradient."""
    found = []
    for group in groups:
        members = group.get("params", []) if isinstance(group, dict) else [group]
        found += [_tensor(member) for member in members if not _requires_gradient(member)]
    return found


def _tensor(value: Any) -> Any:
    """A parameter without its name."""
    return value[1] if isinstance(value, tuple) and len(value) == 2 else value


def _requires_gradient(value: Any) -> bool:
    return getattr(_tensor(value), "requires_grad", True)


def check_groups(groups: Sequence[Any], defaults: Mapping[str, Any]) -> None:
    """Raise where a group sets what is one for all parameters, or what no step would heed."""
    for group in groups:
        given = group if isinstance(group, dict) else {}
        unheeded = [name for name in _OF_OTHERS if given.get(name)]
        unheeded += [
            name for name, default in defaults.items() if given.get(name, default) != default
        ]
        if set(unheeded) - {"lr"}:
            raise ArgumentError(
                expected="groups of parameters that differ in lr alone",
                got=", ".join(f"{name}={given[name]!r}" for name in unheeded if name != "lr"),
                remedy="Give options to HessianFree for all parameters, and weight_decay= to a "
                "hesse.Risk; or return the parameters beside the outputs, p.view_as(p), and a "
                "loss with a penalty on them.",
            )


def check_trainable(groups: Sequence[Mapping[str, Any]], frozen: Sequence[Tensor]) -> None:
    """Raise where a parameter was frozen, or is no longer, since the optimiser was made."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    named = zip(names_of(groups), parameters, strict=True)
    changed = [f"{name!r} frozen" for name, p in named if not p.requires_grad]
    changed += [f"one of shape {tuple(p.shape)} released" for p in frozen if p.requires_grad]
    if changed:
        raise ArgumentError(
            expected="parameters that require gradients, as when the optimiser was made",
            got=f"{', '.join(changed[:4])} since",
            remedy="Make a new HessianFree when parameters are frozen or released; or hold a group "
            "by lr=0.",
        )


def _is_parameter(value: Any) -> bool:
    return isinstance(_tensor(value), (Tensor, dict))


def check_curvature(curvature: Any) -> None:
    """Raise unless this is a name or a factory."""
    if isinstance(curvature, str):
        check_choice("curvature", curvature, ("ggn", "hessian"))
    else:
        _check_factory("curvature", curvature, "ggn")


def check_preconditioner(preconditioner: Any) -> None:
    """Raise unless this is a name or a factory."""
    if isinstance(preconditioner, str):
        check_choice("preconditioner", preconditioner, NAMES)
    else:
        _check_factory("preconditioner", preconditioner, "ekfac")


def _check_factory(what: str, value: Any, default: str) -> None:
    if callable(value) and not isinstance(value, LinearOperator):
        return
    raise OperatorError(
        expected=f"{what} to be a name or a function (risk, params) -> operator",
        got=kind_of(value),
        remedy=f'Give "{default}", or a function such as hesse.kfac_operator: the matrix is needed '
        "at every point.",
    )


def check_defaults(
    *,
    lr: float,
    damping: float,
    damping_bounds: tuple[float, float],
    damping_rule: str,
    max_cg_iterations: int,
    refresh_every: int,
    mode: str,
    **_: int,
) -> None:
    """Raise unless the options of all parameters are such."""
    check_positive(lr=lr)
    check_damping(damping, damping_bounds)
    check_choice("damping_rule", damping_rule, RULES)
    check_choice("mode", mode, ["auto", *PREPARED_MODES])
    check_count("max_cg_iterations", max_cg_iterations, 0)
    check_count("refresh_every", refresh_every, 1)


def check_damping(damping: float, bounds: tuple[float, float]) -> None:
    """Raise unless the damping lies within its bounds."""
    lower, upper = bounds
    check_positive(damping=damping)
    if not 0.0 < lower <= damping <= upper:
        raise ArgumentError(
            expected="0 < damping_bounds[0] <= damping <= damping_bounds[1]",
            got=f"damping={damping!r}, damping_bounds={bounds!r}",
            remedy="Choose bounds around the damping, or leave both out for the defaults.",
        )


def check_source(risk: Risk | None, closure: Callable[[], Any] | None, data: Any) -> None:
    """Raise unless a step is given what its optimiser needs."""
    if risk is not None and closure is not None:
        raise ArgumentError(
            expected="no closure",
            got=kind_of(closure),
            remedy="The risk given at construction is evaluated; or step(data=batch).",
        )
    if risk is None and not (callable(closure) and data is None):
        raise ArgumentError(
            expected="a closure () -> (outputs, loss), or the loss, since the optimiser was given "
            "parameters",
            got="data" if data is not None else kind_of(closure),
            remedy="optimizer.step(closure); or construct it from a hesse.Risk.",
        )


def check_state(state: dict[str, Any], group: dict[str, Any]) -> None:
    """Raise unless a saved state has the options of a group, whose parameters may have no names."""
    saved = (state.get("param_groups") or [{}])[0]
    missing = group.keys() - saved.keys() - {"param_names"}
    if missing:
        raise ArgumentError(
            expected="the state of a hesse.HessianFree",
            got=f"one without {', '.join(sorted(missing))}",
            remedy="Give optimizer.state_dict() of one, not that of another optimiser.",
        )
