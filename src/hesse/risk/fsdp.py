# SPDX-License-Identifier: Apache-2.0
"""Modules whose parameters are sharded by `torch.distributed.fsdp.fully_shard` (FSDP2).

Hesse gathers the parameters itself, once for each point, and differentiates the module as it is
without `fully_shard`: autograd cannot go twice through what FSDP does (torch 2.13). For the time of
a call the hooks of FSDP are set aside; before and after it the module is as it was, so that
training goes on.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from hesse.errors import ArgumentError, StructureError
from hesse.ranks import Ranks
from hesse.vectors.shards import is_sharded

_FSDP = "torch.distributed.fsdp"
_HOOKS = "_forward_pre_hooks", "_forward_hooks"  # where torch.nn.Module keeps them


def is_fsdp(module: nn.Module) -> bool:
    """Whether `fully_shard` was called on a module; without importing it."""
    fsdp = sys.modules.get(_FSDP)
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def hold_shards(model: Any) -> None:
    """Let all modules of FSDP free whole parameters, which some keep after a forward pass."""
    for module in model.modules() if isinstance(model, nn.Module) else ():
        if is_fsdp(module):
            module.reshard()  # pyright: ignore[reportCallIssue]


@contextmanager
def without_fsdp(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within it, calls of the modules gather no parameters: the hooks of FSDP are set aside."""
    kept = [(module, name, getattr(module, name)) for module in modules for name in _HOOKS]
    for module, name, hooks in kept:
        setattr(module, name, OrderedDict(_others(hooks)))
    try:
        yield
    finally:
        for module, name, hooks in kept:
            setattr(module, name, hooks)


def _others(hooks: dict[int, Any]) -> Iterator[tuple[int, Any]]:
    for key, hook in hooks.items():
        if not (getattr(hook, "__module__", None) or "").startswith(_FSDP):
            yield key, hook


def check_shards(model: Any, ranks: Ranks | None) -> None:
    """Raise for a module that is sharded over processes in a way that cannot be undone here."""
    if not isinstance(model, nn.Module):
        return
    managed = set[int]()
    for name, module in model.named_modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            raise StructureError(
                expected="a module whose parameters are tensors of their own",
                got=f"'{name or 'the model'}', a FullyShardedDataParallel, which joins them",
                remedy="Use torch.distributed.fsdp.fully_shard (FSDP2) instead.",
            )
        if is_fsdp(module):
            managed.update(map(id, module.parameters()))
    for name, parameter in model.named_parameters():
        if not is_sharded(parameter):
            continue
        if id(parameter) not in managed:
            raise StructureError(
                expected="parameters that are whole, or sharded by fully_shard (FSDP2)",
                got=f"'{name}', a DTensor with {parameter.placements} by other means, such as "
                "tensor parallelism",
                remedy="Load the weights into a module that is not parallelised; give "
                "hesse.distributed.shard(risk.params, mesh) for sharded vectors.",
            )
        if ranks is None:
            raise ArgumentError(
                expected="group= for a model whose parameters are sharded over processes",
                got="none",
                remedy="Give group=mesh, that of fully_shard, and on each rank its own part of "
                "the data.",
            )
