# SPDX-License-Identifier: Apache-2.0
"""Checks of the arguments of `Risk`, and what went wrong where the model or the loss fails."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hesse.data.batches import Batch
from hesse.data.known_weights import reduction_option
from hesse.data.trees import tensors
from hesse.errors import (
    ArgumentError,
    DtypeError,
    FunctionError,
    HesseError,
    NonFiniteError,
    check_choice,
    first_line,
    kind_of,
)
from hesse.vectors.shards import is_sharded
from hesse.vectors.space import Space, Tree
from hesse.vectors.trees import subscript, walk

_ORDER = "The order is hesse.Risk(model, loss, data)."


def check_model_and_loss(model: Any, loss: Any, data: Any, params: Any) -> None:
    """Raise unless model and loss can be what they are called, in this order."""
    if isinstance(model, type):
        raise ArgumentError(
            expected="a model",
            got=f"the class {model.__name__}",
            remedy=f"Construct it: model = {model.__name__}(...).",
        )
    if isinstance(loss, type):
        raise ArgumentError(
            expected="a loss (outputs, targets) -> scalar",
            got=f"the class {loss.__name__}",
            remedy=f"Construct it: loss = {loss.__name__}().",
        )
    if _is_loss(model) or (params is None and not isinstance(model, nn.Module) and _learns(loss)):
        raise ArgumentError(
            expected="a model, then a loss",
            got=f"{type(model).__name__} as the model and {type(loss).__name__} as the loss",
            remedy=f"Swap them. {_ORDER}",
        )
    for what, argument in (("model", model), ("loss", loss)):
        if not callable(argument):
            raise ArgumentError(
                expected=f"{what} to be callable",
                got=kind_of(argument),
                remedy=f"Give an nn.Module or a function. {_ORDER}",
            )
    if _is_loss(data) or isinstance(data, nn.Module):
        raise ArgumentError(
            expected="data", got=f"a module ({type(data).__name__})", remedy=f"Swap. {_ORDER}"
        )
    _check_parameters(model)
    if params is not None:
        list(walk(params, "params"))  # raises for what is no tree of tensors


def _is_loss(module: Any) -> bool:
    return isinstance(module, nn.Module) and type(module).__module__ == nn.MSELoss.__module__


def _learns(loss: Any) -> bool:
    return isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters())


def _check_parameters(model: Any) -> None:
    """Raise unless the parameters of the model can be replaced."""
    if isinstance(model, torch.jit.ScriptModule):
        raise ArgumentError(
            expected="a module in Python, or a callable (params, inputs) -> outputs",
            got="a module of torch.jit, whose parameters cannot be replaced",
            remedy="Give the module that was scripted or traced.",
        )
    if not isinstance(model, nn.Module):
        return
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if torch.nn.parameter.is_lazy(tensor):
            raise ArgumentError(
                expected="a module whose parameters have shapes",
                got=f"{name!r}, which a lazy module has not initialised yet",
                remedy="Call the model once, with torch.no_grad(): model(inputs), and build the "
                "risk after that.",
            )
        if is_sharded(tensor) and not isinstance(tensor, nn.Parameter):
            raise ArgumentError(
                expected="a module whose buffers are whole tensors",
                got=f"{name!r}, which is sharded over several processes",
                remedy="Give buffer.full_tensor() in its place.",
            )
        if tensor.is_meta:
            raise ArgumentError(
                expected="a module whose parameters have values",
                got=f"{name!r} on the meta device",
                remedy="Call model.to_empty(device='cpu') and load its state first.",
            )


def reduction_of(loss: Any, reduction: str | None) -> str:
    """How the loss reduces a batch: "mean" or "sum"."""
    if reduction is not None:
        check_choice("reduction", reduction, ("mean", "sum"))
        return reduction
    reduction = reduction_option(loss)
    if reduction == "batchmean":  # of nn.KLDivLoss: a mean over examples
        return "mean"
    if reduction not in ("mean", "sum"):
        raise ArgumentError(
            expected="a loss that reduces a batch to a scalar: reduction 'mean' or 'sum'",
            got=f"a loss with reduction={reduction!r}",
            remedy="Construct the loss with reduction='mean'.",
        )
    return reduction


def check_weight_decay(weight_decay: Any) -> float:
    """The weight decay as a float; raises unless it is a finite number of at least 0."""
    try:
        number = float(weight_decay)
    except (TypeError, ValueError):
        number = math.nan
    if 0.0 <= number < math.inf:
        return number
    raise ArgumentError(
        expected="a number weight_decay >= 0",
        got=repr(weight_decay),
        remedy="Leave it out for none.",
    )


# --------------------------------------------------------------------------------------------------
# Failures of the model or the loss

_EXPLAINED = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError)
_ABOUT_DTYPES = re.compile(
    r"dtype|scalar type|not implemented for '|[Ii]nput type|can't be cast|[Ee]xpected \w+ type"
    r"|must be .*(Long|Float|Int|Double)|torch\.\w*(Float|Double|Long|Byte|Int)Tensor"
)
# Of the matrix products and convolutions of a model.
_IN_MODEL = re.compile(r"mat1|mat2|\bm1\b|[Ii]nput type")
_ABOUT_ARGUMENTS = re.compile(r"positional argument|keyword argument|required .*argument")


@contextmanager
def explaining(params: Tree, batch: Batch) -> Iterator[None]:
    """What torch or Python say to wrong data becomes an error that says what to give."""
    try:
        yield
    except Exception as error:
        explained = _explained(error, params, batch) if type(error) in _EXPLAINED else None
        if explained is None:
            raise
        raise explained from error


def _explained(error: Exception, params: Tree, batch: Batch) -> HesseError | None:
    message = first_line(error)
    if _ABOUT_DTYPES.search(message):
        return _wrong_dtype(message, params, batch)
    data = f"inputs: {_described(batch.inputs)}; targets: {_described(batch.targets)}"
    if isinstance(error, TypeError) and _ABOUT_ARGUMENTS.search(message):
        return FunctionError(
            expected=f"a model that takes the inputs and a loss (outputs, targets) ({data})",
            got=message,
            remedy="A tuple or list of inputs gives positional arguments of the model, a mapping "
            "keyword arguments. Two batches in a tuple, or two unlike ones in a list, are one pair "
            f"(inputs, targets): give iter([one, two]). {_ORDER}",
        )
    return FunctionError(
        expected=f"a model and a loss that can be computed for a batch ({data})",
        got=f"{type(error).__name__}: {message}",
        remedy="Compute loss(model(inputs), targets) for this batch: it fails the same way. Are "
        f"shapes and dtypes those that the model takes? {_ORDER}",
    )


def _wrong_dtype(message: str, params: Tree, batch: Batch) -> HesseError:
    of_params = next(tensors(params)).dtype
    name = str(of_params).removeprefix("torch.")
    for what, tree in (("inputs", batch.inputs), ("targets", batch.targets)):
        for tensor in tensors(tree):
            is_other = tensor.dtype.is_floating_point and tensor.dtype != of_params
            is_integer = what == "inputs" and not tensor.dtype.is_floating_point
            if (
                is_other
                or tensor.dtype is torch.uint8
                or (is_integer and _IN_MODEL.search(message))
            ):
                return DtypeError(
                    expected=f"{what} of {name}, as the parameters of the model are",
                    got=f"{what} of {str(tensor.dtype).removeprefix('torch.')} ({message})",
                    remedy=f"Convert them, with {what}.to(torch.{name}), or the model.",
                )
    return DtypeError(
        expected="inputs and targets of the dtypes that the model and the loss take",
        got=f"inputs: {_described(batch.inputs)}; targets: {_described(batch.targets)} ({message})",
        remedy="Convert them: targets.long() for class indices, targets.float() for values.",
    )


def check_finite_leaves(params: Tree, space: Space, what: str, remedy: str) -> None:
    """Raise unless all entries are finite; `what` they are called, plural."""
    bad = space.first_bad_name(space.flatten(params, what="params"))
    if bad is not None:
        raise NonFiniteError(expected=f"finite {what}", got=f"NaN or Inf in {bad!r}", remedy=remedy)


def explained_dtype(error: Exception, model: Any, params: Tree, inputs: Any) -> HesseError | None:
    """What torch says to parameters of another dtype as an error that names one; None for others.

    Only where it fails: a model of integer inputs takes its parameters in any dtype.
    """
    message = first_line(error)
    if isinstance(error, HesseError) or not _ABOUT_DTYPES.search(message):
        return None
    return _foreign_dtype(message, model, params, inputs)


def _foreign_dtype(message: str, model: Any, params: Tree, inputs: Any) -> HesseError | None:
    """The error that names the first parameter, or the inputs, of another dtype; None for none."""
    own: dict[str, Tensor] = {}
    if isinstance(model, nn.Module):
        own = dict(model.named_parameters(remove_duplicate=False))
    of_inputs = next((t.dtype for t in tensors(inputs) if t.is_floating_point()), None)
    for name, leaf in walk(params, "params"):
        expected = own[name].dtype if name in own else of_inputs
        if expected not in (None, leaf.dtype):
            theirs, given = (str(dtype).removeprefix("torch.") for dtype in (expected, leaf.dtype))
            return DtypeError(
                expected=f"params{subscript(name)} of {theirs}, as the "
                + ("model has it" if name in own else "inputs are"),
                got=f"{given} ({message})",
                remedy=f"Convert the parameters, with .to(torch.{theirs}), or make a risk of the "
                f"model and the data in {given}.",
            )
    if of_inputs not in (None, *(leaf.dtype for leaf in tensors(params))):
        return _wrong_dtype(message, params, Batch(inputs, None, 1.0))
    return None


def _described(tree: Any) -> str:
    shown = [f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in tensors(tree)]
    return ", ".join(shown[:4]) + (", ..." if len(shown) > 4 else "") or type(tree).__name__
