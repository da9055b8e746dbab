# SPDX-License-Identifier: Apache-2.0
"""What a module has besides the parameters that it is given: buffers, and frozen parameters.

Where several processes share a risk, these are to be the same in all of them. `Held` has whole
copies of those that are sharded: frozen parameters of a model of `fully_shard` are, as the others.
They are gathered once, when the risk is made, and stand for those of the module in all calls.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from hesse.engine.data_version import Versions, versions
from hesse.errors import StructureError
from hesse.ranks import Ranks
from hesse.risk.sharing import Share, code_of
from hesse.vectors.shards import is_sharded, part_of

_REMEDY = (
    "Give all ranks those of the first, by torch.distributed.broadcast(tensor, 0) for each of "
    "model.buffers(). nn.SyncBatchNorm.convert_sync_batchnorm(model) keeps running statistics "
    "alike."
)


@dataclass(frozen=True)
class Held:
    """Whole parameters by their names in the module, and what tells whether these have changed."""

    whole: Mapping[str, Tensor] = field(default_factory=dict)
    codes: Mapping[str, float] = field(default_factory=dict)
    """Of the parts of this process."""
    seen: dict[str, Versions] = field(default_factory=dict)
    """What the parts were when their codes were last computed."""

    @staticmethod
    def of(model: Any, prefix: str, params: Any, share: Share) -> Held:
        """Those of a module that params, whose names have a prefix, leave out; one all-gather."""
        if not isinstance(model, nn.Module):
            return Held()
        known = params if isinstance(params, Mapping) else {}
        if share.ranks is not None:
            own = model.named_parameters(remove_duplicate=False)
            left_out = [p for name, p in own if prefix + name not in known and not is_sharded(p)]
            _check_same(share.ranks, [*_buffers(model), *left_out])
        names = _names_of_sharded(model)
        left = [each[0] for each in names if not any(prefix + name in known for name in each)]
        parts = {name: model.get_parameter(name) for name in left}
        return Held(
            share.whole({name: part.detach() for name, part in parts.items()}),
            {name: code_of([part_of(part)]) for name, part in parts.items()},
            {name: _version(part) for name, part in parts.items()},
        )

    def check(self, model: Any) -> None:
        """Raise if one of them has changed in the module."""
        for name, code in self.codes.items():
            parameter = model.get_parameter(name)
            version = _version(parameter)
            if version != self.seen[name] and code_of([part_of(parameter)]) != code:
                raise StructureError(
                    expected="parameters that params leave out, such as frozen ones, to stay as "
                    "they were when the risk was made: it has whole copies of them",
                    got=f"another {name!r}",
                    remedy="Make the risk again; what is to change must be in params.",
                )
            self.seen[name] = version


def check_same_buffers(ranks: Ranks, model: Any) -> None:
    """Raise on all ranks unless the buffers of a module are the same on all."""
    buffers = _buffers(model) if isinstance(model, nn.Module) else []
    if buffers:
        _check_same(ranks, buffers)


def _check_same(ranks: Ranks, constants: list[Tensor]) -> None:
    with ranks.alike():
        code = code_of(tensor.detach() for tensor in constants)
    ranks.check_same("buffers and frozen parameters of the model", code, _REMEDY)


def _buffers(model: nn.Module) -> list[Tensor]:
    """All but how often running statistics were updated, which nothing is computed from."""
    named = model.named_buffers()
    return [tensor for name, tensor in named if not name.endswith("num_batches_tracked")]


def check_all_whole(model: nn.Module, given: Collection[str]) -> None:
    """Raise if a sharded parameter of the module is not among the names that are given."""
    for names in _names_of_sharded(model):
        if not any(name in given for name in names):
            raise StructureError(
                expected="all trainable parameters of a model whose parameters are sharded",
                got=f"params without {names[0]!r}",
                remedy="Give risk.params with other entries; with_respect_to= takes the Hessian in "
                "some of them.",
            )


def _names_of_sharded(model: nn.Module) -> list[list[str]]:
    """All names of each sharded parameter."""
    found: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if is_sharded(parameter):
            found.setdefault(id(parameter), []).append(name)
    return list(found.values())


def _version(parameter: Tensor) -> Versions:
    """What changes when a parameter is written to, by a function of `DTensor`s or of its part."""
    return versions([part_of(parameter), parameter])
