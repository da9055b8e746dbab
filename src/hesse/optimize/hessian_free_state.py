# SPDX-License-Identifier: Apache-2.0
"""The state of `HessianFree` between steps: by parameter for `state_dict`, whole for a file."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor

from hesse.checkpoint import Checkpoint
from hesse.data.batches import flatten_batch
from hesse.errors import Status
from hesse.operators.diagonal import IdentityOperator
from hesse.optimize.factory import name_of
from hesse.optimize.growing_share import Growing
from hesse.optimize.kronecker_preconditioner import Stored, first_name, position
from hesse.optimize.point import Counts
from hesse.progress import Run
from hesse.risk.parallel import hold_shards
from hesse.risk.risk import Risk
from hesse.vectors.shards import part_of
from hesse.vectors.space import Space


@dataclass
class HessianFreeState:
    """Everything that the next step depends on, apart from the arguments and the data."""

    x: Tensor
    """The parameters, flat."""
    start: Tensor | None
    refreshed_at: Tensor | None
    factors: list[list[Any]]
    """Of each block: its key, then the names of its tensors and these."""
    counts: Counts
    status: Status
    rates: list[float]
    damping: float
    steps: int
    mode: str
    share: float


@dataclass
class Products:
    """The number of products taken."""

    products: int


_NO_ARGUMENTS = ("steps", "share", "differentiable")
VARYING = ("damping", "steps", "mode", "share")
"""Of a group of parameters, what steps change."""


def checkpoint_of(
    limits: Run, space: Space, curvature: Any, preconditioner: Any, damped: Any, **defaults: Any
) -> Checkpoint:
    """The file of a run with these options."""
    return Checkpoint(
        limits.checkpoint,
        IdentityOperator(space),
        function="HessianFree",
        parameters=space.describe(len(space.names)),
        curvature=name_of(curvature),
        preconditioner=name_of(preconditioner),
        structural_damping=damped,
        **defaults,
    )


def shapes_of(risk: Risk) -> Hashable:
    """The forms of the batches of a risk, each of which has programs of its own."""
    forms = set()
    for batch in risk.data:
        data, key = flatten_batch(batch)
        forms.add((key, tuple((t.shape, t.stride(), t.dtype) for t in data)))
    return frozenset(forms)


def copied(optimizer: Any, options: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a copy is made of: the argument, the options, what steps have changed, and the counts.

    Args:
        optimizer: a `HessianFree`.
        options: of its options those that are in no group of parameters.
    """
    groups = []
    for group in optimizer.param_groups:
        names, params = group.get("param_names"), group["params"]
        named = params if names is None else list(zip(names, params, strict=True))
        groups.append({"params": named, "lr": group["lr"]})
    share, source = optimizer.defaults["share"], optimizer.risk
    if source is None:
        source = groups
    elif share < 1.0:
        source = Growing(source, share)
    kept = {k: v for k, v in optimizer.defaults.items() if k not in _NO_ARGUMENTS}
    own = {name: getattr(optimizer, name) for name in ("status", "_frozen")}
    return source, kept | dict(options), own, dict(vars(optimizer.counts))


class ParameterState:
    """The parameters, and the vectors and factors in `optimizer.state`, each part with its own.

    Args:
        optimizer: the optimiser, whose `load_state_dict` makes its `state` anew.
        model: which has the parameters; None if there is none.
        parameters: of the optimiser, by their names.
        space: of the parameters.
    """

    def __init__(
        self, optimizer: Any, model: Any, parameters: Mapping[str, Tensor], space: Space
    ) -> None:
        self._optimizer = weakref.proxy(optimizer)  # no cycle: data are released with it
        self._model, self._space = model, space
        self._names, self._parameters = list(parameters), list(parameters.values())

    @property
    def x(self) -> Tensor:
        """The parameters as they are, flat."""
        return self._space.join(list(map(part_of, self._parameters))).clone()

    def write(self, x: Tensor) -> None:
        """Set the parameters."""
        hold_shards(self._model)
        for parameter, leaf in zip(self._parameters, self._space.split(x), strict=True):
            part_of(parameter).copy_(leaf)

    def vector(self, key: str) -> Tensor | None:
        """A flat vector; None if there is none."""
        parts = [self._of(parameter).get(key) for parameter in self._parameters]
        present = [part for part in parts if part is not None]
        if len(present) < len(parts):
            return None
        return self._space.join(list(map(part_of, present)))

    def store_vector(self, key: str, vector: Tensor | None) -> None:
        """Put a flat vector there, or take it away."""
        none = dict.fromkeys(self._names)
        parts = (none if vector is None else self._space.unflatten(vector)).values()
        for parameter, part in zip(self._parameters, parts, strict=True):
            self._of(parameter)[key] = part

    def factors(self) -> Stored:
        """The factors of the blocks, in their order."""
        found = [item for p in self._parameters for item in self._of(p).get("factors", {}).items()]
        return dict(sorted(found, key=lambda item: position(item[0])))

    def store_factors(self, stored: Mapping[str, dict[str, Tensor]]) -> None:
        """Put the factors of each block with its first parameter."""
        for parameter in self._parameters:
            self._of(parameter).pop("factors", None)
        for key, tensors in stored.items():
            parameter = self._parameters[self._names.index(first_name(key))]
            self._of(parameter).setdefault("factors", {})[key] = tensors

    def saved(self) -> dict[str, Any]:
        """The parameters, vectors and factors as a `HessianFreeState` has them."""
        return {
            "x": self.x,
            "start": self.vector("start"),
            "refreshed_at": self.vector("refreshed_at"),
            "factors": [[key, *chain(*part.items())] for key, part in self.factors().items()],
        }

    def restore(self, saved: HessianFreeState) -> None:
        """Those of a saved state."""
        self.write(saved.x)
        self.store_vector("start", saved.start)
        self.store_vector("refreshed_at", saved.refreshed_at)
        factors = {
            key: dict(zip(rest[::2], rest[1::2], strict=True)) for key, *rest in saved.factors
        }
        self.store_factors(factors)

    def _of(self, parameter: Tensor) -> dict[str, Any]:
        return self._optimizer.state[parameter]
