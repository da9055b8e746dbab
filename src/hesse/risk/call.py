# SPDX-License-Identifier: Apache-2.0
"""`ModelCall`: a module as a function of its parameters and inputs; `BatchLoss`: with its loss.

`torch.func.functional_call` puts parameters into a module for the time of the forward pass. A
module that runs again in its backward pass (`torch.utils.checkpoint`) would then see its own
parameters: it is copied with the given ones instead. What reaches parameters by another way than
attributes of the module is called within a `Substitution`. While a module has tensors that are not
its own, no other thread may call it or look at its parameters: see `alone_with`.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hesse.ad.loss import map_outputs
from hesse.ad.variables import check_scalar
from hesse.data.batches import Batch
from hesse.data.selection import WeightedTargets
from hesse.data.trees import tensors
from hesse.errors import FunctionError
from hesse.risk.arguments import explained_dtype
from hesse.risk.checks import check_eval_mode
from hesse.risk.held import Held, check_all_whole
from hesse.risk.parallel import in_silence, is_fsdp, only_sends_messages, sends_messages
from hesse.risk.sharing import Share
from hesse.risk.substitution import Substitution
from hesse.surroundings import users_contexts
from hesse.vectors.space import Tree

# Wrappers that do the work of another module, and the attribute where they have it.
_WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}

_locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_making = threading.Lock()


def alone_with(model: Any) -> AbstractContextManager[Any]:
    """Within it no other thread calls the module: it would see the tensors of this one."""
    if not isinstance(model, nn.Module):
        return nullcontext()
    with _making:
        return _locks.setdefault(model, threading.RLock())


@dataclass(frozen=True)
class ModelCall:
    """How a model is called.

    >>> model = nn.Linear(2, 1)
    >>> ModelCall(model)({"weight": torch.ones(1, 2), "bias": torch.ones(1)}, torch.ones(2))
    tensor([3.])
    """

    model: nn.Module | Callable[[Any, Any], Any]
    """A module, or a function (params, inputs) -> outputs."""
    prefix: str = ""
    """What the names of parameters begin with that are given for a wrapper of the module."""
    written_buffers: tuple[str, ...] = ()
    """Buffers that the forward pass writes to; every call gets copies of them."""
    recomputes: bool = False
    """Whether the backward pass runs the module again."""
    substitutes: bool = False
    """Whether the model or the loss reaches parameters by another way than attributes."""
    read_by_loss: tuple[str, ...] = ()
    """The parameters that the loss reaches so."""
    modules: tuple[nn.Module, ...] = ()
    """All modules of the model; one that has two names is there twice."""
    tensors: tuple[int, ...] = ()
    """The ids of its parameters, one that has two names twice."""
    speaking: tuple[nn.Module, ...] = ()
    """Those that send messages to other processes when they are called."""
    modes: tuple[bool, ...] = ()
    """Whether each of them was in train mode when the model was tried."""
    held: Held = field(default_factory=Held, compare=False)
    """Whole parameters that stand for sharded ones which are not given."""

    @staticmethod
    def of(model: Any, held: Held | None = None) -> ModelCall:
        """The call of a model, or of the module in a wrapper such as `nn.DataParallel`.

        >>> ModelCall.of(nn.DataParallel(nn.Linear(1, 1))).prefix
        'module.'
        """
        prefix = ""
        while isinstance(model, nn.Module) and type(model).__name__ in _WRAPPERS:
            attribute = _WRAPPERS[type(model).__name__]
            prefix, model = f"{prefix}{attribute}.", getattr(model, attribute)
        modules = _modules_of(model)
        state = {"tensors": _tensors_of(model), "modes": _train_modes(modules)}
        speaking = tuple(filter(sends_messages, modules))
        state |= {"held": held or Held()}
        return ModelCall(model, prefix, modules=modules, speaking=speaking, **state)

    def __call__(self, params: Tree, inputs: Any) -> Any:
        """The outputs of the model."""
        if _train_modes(self.modules) != self.modes:
            check_eval_mode(self.model)
        silence = in_silence(self.speaking) if self.speaking else nullcontext()
        with self.alone, users_contexts(), silence:
            return self._outputs(params, inputs)

    @property
    def alone(self) -> AbstractContextManager[Any]:
        """Within it no other thread calls the module: see `alone_with`."""
        return alone_with(self.model)

    def holding(self, params: Any, share: Share) -> ModelCall:
        """The same with whole copies of sharded parameters that params leave out."""
        return replace(self, held=Held.of(self.model, self.prefix, params, share))

    @property
    def untried(self) -> ModelCall:
        """The same without what a trial shows."""
        return ModelCall(
            *(self.model, self.prefix),
            modules=self.modules,
            tensors=self.tensors,
            speaking=self.speaking,
            modes=self.modes,
            held=self.held,
        )

    @property
    def is_current(self) -> bool:
        """Whether the model has the modules that it had when it was tried, in the same modes."""
        with self.alone:
            self.held.check(self.model)
            modules = _modules_of(self.model)
            same = modules == self.modules and _train_modes(modules) == self.modes
            return same and _tensors_of(self.model) == self.tensors

    @cached_property
    def _has_ties(self) -> bool:
        """Whether a module or a parameter has two names."""
        modules = set(map(id, self.modules))
        return len(modules) < len(self.modules) or len(set(self.tensors)) < len(self.tensors)

    @cached_property
    def _places(self) -> dict[str, list[str]]:
        """For each name of a parameter or buffer one name for each module that has it.

        Where a module has two names, `functional_call` gives its tensors under both, and does not
        put the second one back: the module is left with the given tensors (torch 2.13).
        """
        assert isinstance(self.model, nn.Module)
        found: dict[int, list[str]] = {}
        for prefix, module in self.model.named_modules():
            for name, tensor in _own_tensors(module, prefix, recurse=False):
                found.setdefault(id(tensor), []).append(name)
        return {name: found[id(tensor)] for name, tensor in _own_tensors(self.model)}

    def _outputs(self, params: Tree, inputs: Any) -> Any:
        model = self.model
        if not isinstance(model, nn.Module):
            return model(params, inputs)
        buffers = {name: model.get_buffer(name).clone() for name in self.written_buffers}
        args, kwargs = _arguments(inputs)
        replaced = {**self.given(params), **buffers}
        if any(map(is_fsdp, self.speaking)):
            check_all_whole(model, replaced)
        if self.recomputes:
            return _copy_with(model, replaced)(*args, **kwargs)
        if self.written_buffers or self._has_ties:
            replaced = {place: t for name, t in replaced.items() for place in self._places[name]}
        return torch.func.functional_call(model, replaced, args, kwargs, tie_weights=False)

    def given(self, params: Any) -> Mapping[str, Tensor]:
        """The parameters by their names in the module itself, with those that are held."""
        if not self.prefix and not self.held.whole:
            return params
        own = {name.removeprefix(self.prefix): tensor for name, tensor in params.items()}
        return {**self.held.whole, **own}

    @contextmanager
    def explained(self, params: Tree, inputs: Any) -> Iterator[None]:
        """Within it, what torch says to parameters of another dtype names them."""
        try:
            yield
        except (RuntimeError, TypeError) as error:
            explained = explained_dtype(error, self.model, params, inputs)
            if explained is None:
                raise
            raise explained from error

    def substitution(self, params: Tree) -> AbstractContextManager[Any]:
        """Within it, model and loss see these parameters by whatever way."""
        if self.substitutes and isinstance(self.model, nn.Module):
            return Substitution(self.model, self.given(params))
        return nullcontext()


def device_of(params: Tree) -> torch.device:
    """The device of the first parameter."""
    first = next(iter(params.values()), None) if isinstance(params, Mapping) else params
    return (first if isinstance(first, Tensor) else next(tensors(params))).device


def _moved(batch: Batch, params: Tree) -> Batch:
    """The batch on the device of the parameters."""
    device = device_of(params)
    return batch if batch.device == device else batch.to(device)


def _arguments(inputs: Any) -> tuple[tuple, dict[str, Any]]:
    """The positional and keyword arguments of the model."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, (list, tuple)) else (inputs,)), {}


def _modules_of(model: Any) -> tuple[nn.Module, ...]:
    if not isinstance(model, nn.Module):
        return ()
    return tuple(module for _, module in model.named_modules(remove_duplicate=False))


def _tensors_of(model: Any) -> tuple[int, ...]:
    if not isinstance(model, nn.Module):
        return ()
    return tuple([id(p) for _, p in model.named_parameters(remove_duplicate=False)])


def _own_tensors(
    module: nn.Module, prefix: str = "", *, recurse: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of a module by all of their names."""
    yield from module.named_parameters(prefix, recurse, remove_duplicate=False)
    yield from module.named_buffers(prefix, recurse, remove_duplicate=False)


def _train_modes(modules: tuple[nn.Module, ...]) -> tuple[bool, ...]:
    return tuple([module.training for module in modules])


def _copy_with(model: nn.Module, replaced: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the module with these tensors; it shares the others."""
    own: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    own.update(model.named_buffers())
    memo: dict[int, Any] = {id(tensor): tensor for tensor in own.values()}
    memo.update((id(own[name]), tensor) for name, tensor in replaced.items())
    for module in filter(only_sends_messages, model.modules()):  # a copy would begin with some
        memo[id(module)] = copy.deepcopy(module.module, memo)
    return copy.deepcopy(model, memo)


# --------------------------------------------------------------------------------------------------
# The loss of a batch


class Around(Protocol):
    """What happens to the loss functions of torch that the model and the loss call."""

    def model(self, targets: Any) -> AbstractContextManager[Any]:
        """The context to call the model in."""
        ...

    def loss(self, targets: Any) -> AbstractContextManager[Any]:
        """The context to call the loss in."""
        ...


class Nothing:
    """They are called as they are."""

    def model(self, targets: Any) -> AbstractContextManager[Any]:
        """None."""
        return nullcontext()

    loss = model


@dataclass(frozen=True)
class LossCall:
    """How a loss is called: (outputs, targets) -> a scalar."""

    loss: Callable[[Any, Any], Tensor]

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        with users_contexts():
            return check_scalar(self.loss(outputs, targets), "loss(outputs, targets)")


@dataclass(frozen=True)
class BatchLoss:
    """The loss of a batch as a function of the parameters: loss(outputs(params))."""

    call: ModelCall
    loss_of: LossCall
    batch: Batch
    around: Around | None = None

    knows_its_leaves = True  # tested at the first evaluation

    def __call__(self, params: Tree) -> Tensor:
        return self.outputs_and_loss(params)[1]

    def outputs_and_loss(self, params: Tree) -> tuple[Any, Tensor]:
        """The outputs of the model, and the scalar loss."""
        batch = _moved(self.batch, params)
        with self._seeing(params, batch):
            outputs = self._outputs(params, batch)
            return outputs, self._loss(outputs, batch)

    def outputs(self, params: Tree) -> Any:
        """The outputs of the model for the inputs of the batch."""
        batch = _moved(self.batch, params)
        with self._seeing(params, batch):
            return self._outputs(params, batch)

    def loss(self, outputs: Any) -> Tensor:
        """The scalar loss as a function of the outputs alone."""
        if self.call.read_by_loss:
            raise _reads_parameters(self.call.read_by_loss)
        found: list[Tensor] = []
        map_outputs(lambda tensor: found.append(tensor) or tensor, outputs)
        return self._loss(outputs, self.batch.to(found[0].device))

    @contextmanager
    def _seeing(self, params: Tree, batch: Batch) -> Iterator[None]:
        """Within it, model and loss see these parameters, by whatever way, and no others."""
        call = self.call
        with call.alone, call.explained(params, batch.inputs), call.substitution(params):
            yield

    def _outputs(self, params: Tree, batch: Batch) -> Any:
        with (self.around or Nothing()).model(batch.targets):
            return self.call(params, batch.inputs)

    def _loss(self, outputs: Any, batch: Batch) -> Tensor:
        targets = batch.targets
        plain = targets.targets if isinstance(targets, WeightedTargets) else targets
        with (self.around or Nothing()).loss(targets):
            return self.loss_of(outputs, plain)


def _reads_parameters(names: tuple[str, ...]) -> FunctionError:
    return FunctionError(
        expected="a loss of the outputs and the targets alone, as a Gauss-Newton matrix needs it",
        got=f"a loss that also reads the parameters {', '.join(map(repr, names[:3]))}"
        + (", ..." if len(names) > 3 else ""),
        remedy="Give an L2 penalty as weight_decay=; of any other, the Hessian is what there is: "
        "hesse.hessian_operator(risk, params).",
    )
