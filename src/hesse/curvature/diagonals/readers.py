# SPDX-License-Identifier: Apache-2.0
"""What the outputs z of a batch are, and the matrix B between J' and J, for each curvature matrix.

| reader | z | B |
|---|---|---|
| `LikelihoodReader` | the parameters of the likelihoods in the loss | as a Fisher matrix says |
| `HessianReader` | the outputs of the model | the Hessian of the loss in them |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from torch import Tensor

from hesse.ad.by_jacobian import in_dtypes_of
from hesse.ad.double_backward import twice_differentiable
from hesse.ad.examples import Axis
from hesse.ad.fisher import LikelihoodLoss, seen
from hesse.ad.jacobian import JacobianGraph, random_like
from hesse.ad.likelihoods.seen import LikelihoodCalls, SeenLikelihoods, SeenLoss, seen_loss
from hesse.ad.loss import LinearLossError, LossHessian, map_outputs
from hesse.ad.variables import BoundFunction, Leaves, Variables, tracked
from hesse.curvature.diagonals.vectors import HessianVectors, RootVectors, SlopeVectors, Vectors
from hesse.curvature.likelihood_sum import LikelihoodSum
from hesse.curvature.rows_of_examples import example_axes
from hesse.data.batches import Batch
from hesse.engine.closeness import agree
from hesse.errors import DataError, FunctionError
from hesse.risk.risk import Risk
from hesse.risk.slices import axes_of_examples
from hesse.vectors.space import Space, Tree

LossT = TypeVar("LossT")

# The most outputs of an example of which the Hessian of any loss is decomposed.
_MOST_OUTPUTS = 256


class Reader(ABC, Generic[LossT]):
    """How to read z and B off the loss of a batch."""

    @abstractmethod
    def loss(self, f: BoundFunction, leaves: Leaves) -> LossT:
        """The loss at these leaves."""

    @abstractmethod
    def outputs(self, loss: LossT) -> list[Tensor]:
        """z, with its graph."""

    @abstractmethod
    def vectors(self, loss: LossT, function: Any, examples: int) -> Vectors | None:
        """The vectors of B; None where its blocks are not those of examples."""

    @abstractmethod
    def on(self, function: Any, batch: Batch) -> Any:
        """The loss of another batch."""


@dataclass(frozen=True)
class LikelihoodReader(Reader[SeenLikelihoods]):
    """Of a loss that is made of likelihoods.

    Args:
        axes: where the examples are in each of these.
        name: of the loss, for messages.
    """

    axes: tuple[Axis, ...]
    name: str

    def loss(self, f: BoundFunction, leaves: Leaves) -> SeenLoss:
        if not isinstance(f.function, LikelihoodLoss):
            f = replace(f, function=LikelihoodLoss(f.function, self.name))
        with twice_differentiable():
            return seen(f, leaves)

    def outputs(self, loss: SeenLikelihoods) -> list[Tensor]:
        return loss.z

    def vectors(self, loss: SeenLikelihoods, function: Any, examples: int) -> Vectors:
        loss.check()
        blocks = function.blocks if isinstance(function, LikelihoodLoss) else "exact"
        if blocks == "exact":
            return RootVectors(loss, self.axes, examples)
        return SlopeVectors(loss, blocks, function.uniform, self.axes, function.examples, examples)

    def on(self, function: Any, batch: Batch) -> Any:
        if isinstance(function, LikelihoodLoss):
            return replace(function, function=replace(function.function, batch=batch))
        return replace(function, batch=batch)


@dataclass(frozen=True)
class HessianReader(Reader[LossHessian]):
    """Of any loss of the outputs of a model whose first dimensions count the examples.

    Args:
        axes: where the examples are in the outputs.
    """

    axes: tuple[Axis, ...] = ()

    def loss(self, f: BoundFunction, leaves: Leaves) -> LossHessian:
        with twice_differentiable():
            return LossHessian(f.outputs(leaves), f.loss)

    def outputs(self, loss: LossHessian) -> list[Tensor]:
        return loss.tensors

    def vectors(self, loss: LossHessian, function: Any, examples: int) -> Vectors | None:
        del function
        if any(z.ndim == 0 or len(z) != examples for z in loss.tensors):
            return None
        if self.axes != tuple(Axis(-z.ndim) for z in loss.tensors):
            return None
        if sum(z.numel() for z in loss.tensors) > _MOST_OUTPUTS * examples:
            return None
        loss.check_custom_function()
        vectors = HessianVectors(loss, examples)
        return vectors if vectors.is_right() else None

    def on(self, function: Any, batch: Batch) -> Any:
        return replace(function, batch=batch)


def fisher_reader(f: LikelihoodSum, params: Tree) -> LikelihoodReader | None:
    """That of a Fisher matrix; None where examples influence one another, or cannot be cut."""
    try:
        axes = example_axes(f.risk, params, needed=False)
    except DataError:
        return None
    return None if axes is None else LikelihoodReader(axes, f.risk.loss_name)


def gauss_newton_reader(risk: Risk, params: Tree) -> Reader | None:
    """That of a Gauss-Newton matrix; None where none is known to be right.

    The matrix of likelihoods is that of the Hessian where their parameters are natural, and linear
    in the outputs of the model.
    """
    f = _first(risk, params)
    try:
        if _is_fisher_matrix(f, risk.loss_name):
            axes = example_axes(risk, params, needed=False)
            return None if axes is None else LikelihoodReader(axes, risk.loss_name)
        axes = _axes_of_outputs(risk, params)
    except DataError:
        return None
    return None if axes is None else HessianReader(axes)


def _first(risk: Risk, params: Tree) -> BoundFunction:
    space = Space.of(params, what="params")
    variables = Variables.of(space.copy(params), space)
    return BoundFunction(risk.loss_of(risk.data.first), variables)


def _axes_of_outputs(risk: Risk, params: Tree) -> tuple[Axis, ...] | None:
    def outputs(params: Tree, batch: Batch) -> list[Tensor]:
        space = Space.of(params, what="params")
        variables = Variables.of(space.copy(params), space)
        f = BoundFunction(risk.loss_of(batch), variables)
        try:
            return HessianReader().loss(f, tracked(variables.x)).tensors
        except LinearLossError as error:  # the model computes its loss itself
            raise DataError(expected=error.expected, got=error.got, remedy=error.remedy) from error

    return axes_of_examples(outputs, params, risk.data.first_of_several)


def _is_fisher_matrix(f: BoundFunction, name: str) -> bool:
    """Whether the Gauss-Newton matrix is the Fisher matrix of the likelihoods in the loss."""
    with twice_differentiable():
        leaves = tracked(f.variables.x)
        try:
            loss = seen(replace(f, function=LikelihoodLoss(f.function, name)), leaves)
            loss.check()
        except FunctionError:
            return False
        if not all(likelihood.is_natural for likelihood in loss.likelihoods):
            return False
        outputs = f.outputs(leaves)
        try:
            hessian = LossHessian(outputs, f.loss)
        except LinearLossError:
            return True  # by definition: the model computed the loss
        return _is_hessian(hessian, outputs, f)


def _is_hessian(hessian: LossHessian, outputs: Any, f: BoundFunction) -> bool:
    """Whether H u, in the outputs, is the product with the Fisher matrix of the likelihoods."""
    free = tracked(hessian.tensors)
    given = {id(old): new for old, new in zip(hessian.tensors, free, strict=True)}
    with LikelihoodCalls() as noted:
        value = f.loss(map_outputs(lambda t: given.get(id(t), t).view_as(t), outputs))
    try:
        loss = seen_loss(value, noted.calls, free)
    except FunctionError:
        return False
    jacobian, u = JacobianGraph(loss.z, free), random_like(free)
    pairs = loss.pairs(jacobian.push_forward(u))
    products = [part for each, own in pairs for part in each.product(own)]
    return agree(jacobian.pull_back(in_dtypes_of(loss.z, products)), hessian.product(u), 0.0)
