# SPDX-License-Identifier: Apache-2.0
"""The loss as a function of the outputs of the model: value, slope, and products with its Hessian.

A loss that is linear in the outputs is refused, since its Gauss-Newton matrix is zero; one that is
flat or linear just here (the absolute error, a hinge) is not, but it is said.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, MutableMapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hesse.ad.double_backward import check_depends, derivative, twice_differentiable
from hesse.ad.finite_differences import central_difference
from hesse.ad.graph_nodes import custom_function, graph_nodes
from hesse.ad.jacobian import explained, random_like, undifferentiable
from hesse.ad.variables import Leaves, check_scalar, number, tracked
from hesse.boundary import warn
from hesse.errors import FunctionError
from hesse.vectors.inner_products import norm
from hesse.vectors.rows import joined

# Of the slope of a loss with kinks, or with pieces that are linear.
_KINKS = re.compile("Sgn|Sign(?!al)|Threshold|Relu|Hardtanh|Huber|SmoothL1")


class LossHessian:
    """The loss as a function of the outputs: its value, its slope, and products with H_L.

    Args:
        outputs: z, a tensor or a tree that the loss understands; `tensors` are those that depend on
            the parameters.
        loss: z -> a scalar.
    """

    def __init__(self, outputs: Any, loss: Callable[[Any], Tensor]) -> None:
        self.tensors, self._rebuild = _output_tensors(outputs)
        self._loss, self._free = loss, tracked(self.tensors)
        value = self._evaluate(self._free)
        check_depends(value)
        self.custom_function = custom_function(value)
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
        with twice_differentiable(), explained("a loss"):
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
            value = self._loss(self._rebuild([z.view_as(z) for z in free]))
        except RuntimeError as error:
            if "leaf Variable that requires grad" not in str(error):
                raise
            # The loss changes its outputs in place, which it may do to copies.
            value = self._loss(self._rebuild([z.clone() for z in free]))
        return check_scalar(value)


def _check_curved(slope: Leaves) -> None:
    if not any(part.grad_fn is not None for part in slope):  # zeros may require a gradient
        raise FunctionError(
            expected="a loss that is curved in the outputs of the model",
            got="a loss that is linear in them, whose Gauss-Newton matrix is zero",
            remedy="Let the model return what goes into the loss (the logits, the prediction), and "
            "the loss function compute the loss from it.",
        )


def _output_tensors(z: Any) -> tuple[list[Tensor], Callable[[Leaves], Any]]:
    """The tensors of z that depend on x, and the way to put others in their place."""
    found: list[Tensor] = []
    _replace(z, lambda tensor: found.append(tensor) or tensor)
    if not found:
        raise FunctionError(
            expected="outputs that depend on the parameters",
            got=f"a {type(z).__name__} without a tensor that does",
            remedy="Compute the outputs from the parameters given, without .detach() or no_grad.",
        )

    def rebuild(tensors: Leaves) -> Any:
        rest = iter(tensors)
        return _replace(z, lambda _: next(rest))

    return found, rebuild


def _replace(z: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """z with `function` applied to its differentiable tensors; all else is kept as it is."""
    if isinstance(z, Tensor):
        return function(z) if z.requires_grad else z
    if isinstance(z, MutableMapping):  # dicts, and the dict-like outputs of transformers
        result = copy.copy(z)
        for key in z:
            result[key] = _replace(z[key], function)
        return result
    if isinstance(z, tuple) and hasattr(z, "_fields"):
        return type(z)(*(_replace(part, function) for part in z))
    if isinstance(z, (list, tuple)):
        return type(z)(_replace(part, function) for part in z)
    return z
