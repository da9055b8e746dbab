# SPDX-License-Identifier: Apache-2.0
"""The loss as a function of the outputs of the model: value, slope, and products with its Hessian.

A loss that is linear in the outputs is refused, since its Gauss-Newton matrix is zero; one that is
flat or linear just here (the absolute error, a hinge) is not, but it is said.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
from collections.abc import Callable, MutableMapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hesse.ad.double_backward import check_depends, derivative, differentiating
from hesse.ad.finite_differences import central_difference
from hesse.ad.graph_nodes import custom_function, graph_leaves, graph_nodes, varies
from hesse.ad.jacobian import explained, random_like, undifferentiable
from hesse.ad.torch_calls import TorchCalls
from hesse.ad.variables import Leaves, check_scalar, number, tracked
from hesse.boundary import warn
from hesse.errors import DtypeError, FunctionError, kind_of
from hesse.vectors.inner_products import norm
from hesse.vectors.rows import joined

# Of the slope of a loss with kinks, or with pieces that are linear.
_KINKS = re.compile("Sgn|Sign(?!al)|Threshold|Relu|Hardtanh|Huber|SmoothL1")


class LinearLossError(FunctionError):
    """The loss is linear in the outputs of the model, as where the model computes it itself."""


class LossHessian:
    """The loss as a function of the outputs: its value, its slope, and products with H_L.

    Args:
        outputs: z, a tensor or a tree that the loss understands; `tensors` are those that depend on
            the parameters.
        loss: z -> a scalar.
    """

    def __init__(self, outputs: Any, loss: Callable[[Any], Tensor]) -> None:
        self.tensors, self._rebuild = _output_tensors(outputs)
        _check_real(self.tensors)
        self._loss, self._free = loss, tracked(self.tensors)
        value = self._evaluate(self._free)
        check_depends(value)
        self.custom_function = custom_function(value)
        own = {id(leaf) for leaf in self._free}
        self._other = {key: leaf for key, leaf in graph_leaves(value).items() if key not in own}
        self._slope = derivative(value, self._free, create_graph=True)
        _check_curved(self._slope)
        self.value = number(value)

    @property
    def slope(self) -> list[Tensor]:
        """dL/dz."""
        return [part.detach() for part in self._slope]

    @property
    def retained(self) -> list[Tensor]:
        """The slope with its graph."""
        return [part for part in self._slope if part.requires_grad]

    @property
    def may_be_flat(self) -> bool:
        """Whether the loss has kinks, so that `check_flat` has something to look at."""
        return any(_KINKS.search(n.name()) for part in self._slope for n in graph_nodes(part))

    def product(self, u: Leaves) -> list[Tensor]:
        """H_L u, shaped like the outputs."""
        pairs = [(s, w) for s, w in zip(self._slope, u, strict=True) if s.requires_grad]
        graph, directions = zip(*pairs, strict=True)
        with differentiating(), explained("a loss"):
            return derivative(graph, self._free, directions, retain_graph=True)

    def check_custom_function(self) -> None:
        """Raise unless products are differences of the slope, where they may be something else."""
        _ = self._custom_function_is_right

    @cached_property
    def _custom_function_is_right(self) -> bool:
        if self.custom_function is None:
            return True
        z, u = [part.detach() for part in self._free], random_like(self._free)
        difference = central_difference(self._evaluate, z, u).product
        error = joined([a - b for a, b in zip(self.product(u), difference, strict=True)])
        eps = torch.finfo(error.dtype).eps
        if norm(error) > min(10 * eps ** (1 / 3), 0.5) * norm(joined(difference)):
            reason = (
                f"the backward pass of {self.custom_function} cannot be differentiated, or is wrong"
            )
            raise undifferentiable("a loss", reason)
        return True

    def check_reads_outputs_only(self, x: Leaves) -> None:
        """Raise if the loss depends on x by another way than the outputs."""
        if any(id(leaf) in self._other for leaf in x):
            raise FunctionError(
                expected="a loss of the outputs and the targets alone, as a Gauss-Newton matrix "
                "needs it",
                got="a loss that depends on the parameters by another way too, such as an "
                "attribute that forward sets",
                remedy="Return all that the loss needs from the model, in a tuple or a dict; for a "
                "penalty, the parameters themselves, p.view_as(p), or give weight_decay= to a "
                "hesse.Risk; or use hesse.hessian_operator.",
            )

    def check_flat(self) -> None:
        """Warn if H_L is zero here."""
        if not any(bool(part.any()) for part in self.product(random_like(self._free))):
            warn(
                "the loss is flat or piecewise linear at these outputs, as the absolute error and "
                "hinges are; its Gauss-Newton matrix is zero. Use a loss that is curved, such as "
                "torch.nn.SmoothL1Loss, or hesse.hessian_operator."
            )

    def _evaluate(self, free: Leaves) -> Tensor:
        try:
            # Views: torch's module tracker refuses leaves (of FlopCounterMode, torch 2.13).
            value = self._call([z.view_as(z) for z in free])
        except RuntimeError as error:
            if "leaf Variable that requires grad" not in str(error):
                raise
            # The loss changes its outputs in place, which it may do to copies.
            value = self._call([z.clone() for z in free])
        return check_scalar(value)

    def _call(self, z: Leaves) -> Tensor:
        outputs = self._rebuild(z)
        with TorchCalls():
            return self._loss(outputs)


def _check_curved(slope: Leaves) -> None:
    if not any(map(varies, slope)):
        raise LinearLossError(
            expected="a loss that is curved in the outputs of the model",
            got="a loss that is linear in them, whose Gauss-Newton matrix is zero",
            remedy="Let the model return what goes into the loss (the logits, the prediction), and "
            "the loss function compute the loss from it; for a loss of linear pieces, such as the "
            "hinge, take the Hessian.",
        )


def _output_tensors(z: Any) -> tuple[list[Tensor], Callable[[Leaves], Any]]:
    """The tensors of z that depend on x, and the way to put others in their place."""
    found: dict[int, Tensor] = {}  # a tensor in two places is one output
    map_outputs(lambda t: found.setdefault(id(t), t) if t.requires_grad else t, z)
    if not found:
        raise FunctionError(
            expected="outputs that depend on the parameters",
            got=f"{kind_of(z)} without a tensor that does",
            remedy="Compute the outputs from the parameters given, without .detach() or no_grad, "
            "and return them in a tensor, dict, list, tuple, dataclass or distribution.",
        )

    def rebuild(tensors: Leaves) -> Any:
        given = dict(zip(found, tensors, strict=True))
        return map_outputs(lambda tensor: given.get(id(tensor), tensor), z)

    return list(found.values()), rebuild


def _check_real(outputs: Leaves) -> None:
    for part in outputs:
        if part.is_complex():
            raise DtypeError(
                expected="outputs of a real dtype, between which and the loss a matrix is taken",
                got=f"outputs of {part.dtype}",
                remedy="Let the model return torch.view_as_real(z), and the loss compute "
                "torch.view_as_complex(z) from it; hesse.hessian_operator takes any outputs.",
            )


def map_outputs(function: Callable[[Tensor], Tensor], z: Any) -> Any:
    """z with `function` applied to its tensors; all else is kept as it is.

    Outputs may be any nesting of dicts, lists, tuples and objects with attributes, such as
    dataclasses and `torch.distributions`.
    """
    return _map_outputs(function, z, set())


def _map_outputs(function: Callable[[Tensor], Tensor], z: Any, within: set[int]) -> Any:
    if isinstance(z, Tensor):
        return function(z)
    if id(z) in within:  # an object that refers to itself
        return z
    inner = {*within, id(z)}
    if isinstance(z, MutableMapping):  # dicts, and the dict-like outputs of transformers
        result = copy.copy(z)
        for key in z:
            result[key] = _map_outputs(function, z[key], inner)
        return result
    if isinstance(z, tuple) and hasattr(z, "_fields"):
        return type(z)(*(_map_outputs(function, part, inner) for part in z))
    if isinstance(z, (list, tuple)):
        return type(z)(_map_outputs(function, part, inner) for part in z)
    attributes = _attributes(z)
    replaced = {name: _map_outputs(function, part, inner) for name, part in attributes.items()}
    if all(replaced[name] is part for name, part in attributes.items()):
        return z
    result = copy.copy(z)
    for name, part in replaced.items():
        object.__setattr__(result, name, part)
    return result


def _attributes(z: Any) -> dict[str, Any]:
    """The attributes of an object in which a model may return tensors."""
    if isinstance(z, (type, torch.nn.Module)) or inspect.isroutine(z):
        return {}
    if dataclasses.is_dataclass(z):
        return {field.name: getattr(z, field.name) for field in dataclasses.fields(z)}
    return dict(getattr(z, "__dict__", {}))
