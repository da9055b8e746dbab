"""A problem: a scalar function of named parameters; where it is one, a model, a loss and a batch.

Every library is given what it asks for: Hesse's Hessian and the functional transforms the function
f, Gauss-Newton products and curvlinops the model and the loss.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import hesse

Params = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class ModelAndLoss:
    """loss(model(inputs), targets): one tensor in, one tensor out."""

    model: nn.Module
    loss: nn.Module
    inputs: Tensor
    targets: Tensor

    def __call__(self, params: Params) -> Tensor:
        return self.loss(self.outputs(params), self.targets)

    def outputs(self, params: Params) -> Tensor:
        """What the model gives with these parameters."""
        return torch.func.functional_call(self.model, params, (self.inputs,))

    def batches(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """The data in so many batches."""
        inputs, targets = self.inputs.tensor_split(count), self.targets.tensor_split(count)
        return list(zip(inputs, targets, strict=True))

    def double(self) -> ModelAndLoss:
        """The same in float64."""
        model = copy.deepcopy(self.model).double()
        return ModelAndLoss(model, self.loss, _double(self.inputs), _double(self.targets))


@dataclass(frozen=True, eq=False)
class Problem:
    """A function with a point.

    Attributes:
        f: the function as its user would write it.
        parts: f as a model and a loss, where it is one.
        functional: the same function (and parts) in a form that `torch.func` can transform, where
            that differs: it does if f calls `torch.autograd.grad` itself.
        fused: "attention" or "recurrent" where f calls a fused kernel without second derivatives.
        jax: the name of the function in `jax_worker`, if it is there.
    """

    name: str
    f: Callable[[Params], Tensor]
    params: Params
    parts: ModelAndLoss | None = None
    functional: Callable[[Params], Tensor] | None = None
    fused: str | None = None
    jax: str | None = None

    @staticmethod
    def of(name: str, parts: ModelAndLoss, **options) -> Problem:
        """The loss of a model as a function of its parameters."""
        params = {name: p.detach().clone() for name, p in parts.model.named_parameters()}
        return Problem(name, parts, params, parts, **options)

    @property
    def n(self) -> int:
        """The number of parameters."""
        return sum(leaf.numel() for leaf in self.params.values())

    def risk(self, batches: int = 1) -> hesse.Risk:
        """A new Risk of the model and the loss, which keeps the programs that are traced for it."""
        assert self.parts is not None
        parts = self.parts
        data = parts.batches(batches) if batches > 1 else (parts.inputs, parts.targets)
        return hesse.Risk(parts.model, parts.loss, data)

    @property
    def transformable(self) -> Callable[[Params], Tensor]:
        """f in a form that `torch.func` can transform."""
        return self.functional or self.f

    @property
    def transformable_parts(self) -> ModelAndLoss | None:
        """The model and the loss in such a form."""
        return self.functional if isinstance(self.functional, ModelAndLoss) else self.parts

    def double(self) -> Problem:
        """The same function at the same point, in float64."""
        params = {name: leaf.double() for name, leaf in self.params.items()}
        if self.parts is None:
            return Problem(self.name, self.f, params)
        parts = self.parts.double()
        return Problem(self.name, parts, params, parts)


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
