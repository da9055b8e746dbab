# SPDX-License-Identifier: Apache-2.0
"""Parameters of a module that are reached by another way than its attributes.

`torch.func.functional_call` puts given tensors into a module for the time of its forward pass. A
loss with a penalty over `model.parameters()`, and a weight in a Python list or a closure, see the
module's own parameters all the same. `Substitution` gives every function of torch the given tensors
instead; what torch does not show it is found in the graph of the loss by `graph_leaves`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hesse.errors import FunctionError
from hesse.risk.stored import place_of, stores

# Methods that give the entries of a tensor as something else than a tensor.
_READS = ("item", "tolist", "numpy", "__float__", "__int__", "__bool__")


class Substitution(TorchFunctionMode):
    """Within it, functions of torch see given tensors in the place of a module's own parameters.

    `reached` has the names of those that some function would have seen, `dtypes` those in which
    something was computed.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> with Substitution(model, {"weight": torch.tensor([[3.0, 4.0]])}) as substitution:
    ...     print(model.weight.norm())
    tensor(5.)
    >>> substitution.reached
    {'weight'}
    """

    def __init__(self, model: nn.Module | None, given: Mapping[str, Tensor]) -> None:
        super().__init__()
        own = () if model is None else model.named_parameters(remove_duplicate=False)
        self._given = {
            id(parameter): (name, given[name])
            for name, parameter in own
            if name in given and given[name] is not parameter
        }
        self.reached: set[str] = set()
        self.dtypes: set[torch.dtype] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        found: set[str] = set()
        args = [self._replaced(arg, found) for arg in args]
        kwargs = {key: self._replaced(arg, found) for key, arg in (kwargs or {}).items()}
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.dtype.is_floating_point:
            self.dtypes.add(result.dtype)
        # The shape, dtype or device of a parameter may be looked at.
        if found and (isinstance(result, (Tensor, list, tuple)) or func.__name__ in _READS):
            self.reached |= found if not isinstance(result, torch.Size) else set()
        return result

    def _replaced(self, value: Any, found: set[str]) -> Any:
        if isinstance(value, Tensor):
            name, given = self._given.get(id(value), ("", value))
            found |= {name} if name else set()
            return given
        if type(value) in (list, tuple):
            return type(value)(self._replaced(part, found) for part in value)
        return value


def check_own_leaves(
    leaves: Sequence[Tensor], model: nn.Module, loss: Any, given: Mapping[str, Tensor]
) -> None:
    """Raise if the loss of a module depends on a trainable tensor that params cannot replace.

    Parameters that are left out of params are constants, as the user says.
    """
    if not leaves:
        return
    own = {id(p): name for name, p in model.named_parameters(remove_duplicate=False)}
    for leaf in leaves:
        name = own.get(id(leaf))
        if name is None:
            raise _foreign(leaf, model, loss)
        if name in given:
            place = place_of([leaf], model)
            if place:
                raise stores([name], place)
            raise FunctionError(
                expected="a model and a loss that reach their parameters through functions of "
                "torch, so that those of params can take their place",
                got=f"the module's own parameter {name!r} in the loss",
                remedy="Use it as an attribute of the module in forward, or write model as a "
                "callable (params, inputs) -> outputs that takes all from params.",
            )


def _foreign(leaf: Tensor, model: nn.Module, loss: Any) -> FunctionError:
    name = _name(leaf, model, loss) or f"a tensor of shape {tuple(leaf.shape)}"
    return FunctionError(
        expected="a loss whose trainable tensors are all parameters of the module",
        got=f"{name}, which requires a gradient and is no parameter of the module",
        remedy="Register it in the module as an nn.Parameter, to differentiate in it; or, for a "
        "constant, use .detach() or requires_grad_(False).",
    )


def _name(leaf: Tensor, model: nn.Module, loss: Any) -> str | None:
    """How the user may know a tensor: a parameter of the loss, in a list, or in a closure."""
    if isinstance(loss, nn.Module):
        for name, parameter in loss.named_parameters():
            if parameter is leaf:
                return f"the parameter {name!r} of the loss"
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            held = value if isinstance(value, (list, tuple)) else [value]
            if not attribute.startswith("_") and any(part is leaf for part in held):
                return f"the attribute {'.'.join(filter(None, (path, attribute)))!r} of the module"
    for function in (loss, type(model).forward):
        if inspect.isfunction(function):
            variables = inspect.getclosurevars(function)
            for name, value in {**variables.nonlocals, **variables.globals}.items():
                held = value if isinstance(value, (list, tuple)) else [value]
                if any(part is leaf for part in held):
                    return f"the variable {name!r}"
    return None
