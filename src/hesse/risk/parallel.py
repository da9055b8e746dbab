# SPDX-License-Identifier: Apache-2.0
"""Modules that send messages to other processes when they are called.

Of those that `torch.distributed.fsdp.fully_shard` (FSDP2) shards, Hesse gathers the parameters
itself, once for each point, and differentiates the module as it is without `fully_shard`: autograd
cannot go twice through what FSDP does (torch 2.13). A `DistributedDataParallel` sends its buffers
with every call, for which processes with other numbers of batches would wait. For the time of a
call both are set aside; before and after it the module is as it was, so that training goes on.
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
_SENT_BY_OTHERS = "_use_python_reducer"  # of DistributedDataParallel in torch 2.13


def is_fsdp(module: nn.Module) -> bool:
    """Whether `fully_shard` was called on a module; without importing it."""
    fsdp = sys.modules.get(_FSDP)
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def hold_shards(model: Any) -> None:
    """Let all modules of FSDP free whole parameters, which some keep after a forward pass."""
    for module in model.modules() if isinstance(model, nn.Module) else ():
        if is_fsdp(module):
            module.reshard()  # pyright: ignore[reportCallIssue]


def sends_messages(module: nn.Module) -> bool:
    """Whether a module speaks with other processes when it is called."""
    return is_fsdp(module) or _is_ddp(module)


def only_sends_messages(module: nn.Module) -> bool:
    """Whether a module does nothing else than that of which it is a wrapper."""
    return _is_ddp(module) and type(module).forward is nn.parallel.DistributedDataParallel.forward


def _is_ddp(module: nn.Module) -> bool:
    return isinstance(module, nn.parallel.DistributedDataParallel)


@contextmanager
def in_silence(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within it, calls of modules that send messages send none.

    The hooks of FSDP are set aside. A `DistributedDataParallel` takes itself for one whose messages
    are sent by others: it then calls its module and does nothing else.
    """
    kept = [(module, name, getattr(module, name)) for module in modules for name in _told(module)]
    for module, name, value in kept:
        setattr(module, name, True if name == _SENT_BY_OTHERS else OrderedDict(_others(value)))
    try:
        yield
    finally:
        for module, name, value in kept:
            setattr(module, name, value)


def _told(module: nn.Module) -> tuple[str, ...]:
    """The attributes by which a module is silenced."""
    return (*(_HOOKS if is_fsdp(module) else ()), *((_SENT_BY_OTHERS,) if _is_ddp(module) else ()))


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
