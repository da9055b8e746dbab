# SPDX-License-Identifier: Apache-2.0
r"""Vectors u at the outputs with sum u u' = B, the matrix between J' and J.

| fisher | vectors |
|---|---|
| "exact" | all columns of the roots of B, one at most for each output, all examples at once |
| "sampled" | roots times random signs, for every row its own: E[u u'] = B |
| "empirical" | the observed slopes times random signs, one for each row |

Every vector carries a random sign for each example, so that examples do not meet in sums over them.
For a loss without a known likelihood B is its Hessian in the outputs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hesse.ad.by_jacobian import in_dtypes_of
from hesse.ad.double_backward import twice_differentiable
from hesse.ad.examples import Axis
from hesse.ad.fisher import seen
from hesse.ad.likelihoods.seen import SeenLikelihoods
from hesse.ad.loss import LossHessian
from hesse.ad.variables import BoundFunction, Leaves
from hesse.errors import FunctionError
from hesse.krylov.lanczos_process import LanczosProcess
from hesse.operators.dense import function_operator
from hesse.vectors.random import random_signs
from hesse.vectors.space import Space

# The most vectors that "exact" takes; beyond, signs are drawn.
MOST_VECTORS = 256

# Lanczos steps for H^{1/2} e: an error of a few per cent, where there is no exact root.
_ROOT_STEPS = 10


class LossRoots(ABC):
    """The outputs of a model on a batch, and roots of B at them."""

    z: list[Tensor]
    """The outputs, with their graph."""

    @abstractmethod
    def root(self, e: Sequence[Tensor]) -> list[Tensor]:
        """S e with S S' = B, shaped like z."""

    @abstractmethod
    def observed(self, generator: torch.Generator) -> list[Tensor]:
        """r times a random sign for every row, r r' the block of the empirical Fisher matrix."""

    @abstractmethod
    def per_example(self, examples: int) -> list[int]:
        """How many entries of each z belong to one example."""

    def units(self, examples: int) -> list[Tensor]:
        """The entries of an example, of each z, whose unit vectors e give all `columns(e)`."""
        return [torch.arange(size) for size in self.per_example(examples)]

    def columns(self, e: Sequence[Tensor]) -> list[Tensor]:
        """S e, for a root that may have fewer columns than that of `root`."""
        return self.root(e)

    @abstractmethod
    def spread(self, numbers: Sequence[Tensor]) -> list[Tensor]:
        """Numbers (examples, entries of an example) in the shape of z; one column serves all."""


def exact_count(loss: LossRoots, examples: int) -> int:
    """How many vectors the exact root takes."""
    return sum(map(len, loss.units(examples)))


def vectors(
    loss: LossRoots, fisher: str, examples: int, samples: int, seed: int
) -> Iterator[tuple[float, list[Tensor]]]:
    """(weight, u) with sum weight u u' = B, or its mean, by the table of the module."""
    generator = torch.Generator().manual_seed(seed)
    if fisher == "exact":
        yield from ((1.0, u) for u in _columns(loss, examples, generator))
        return
    for _ in range(samples):
        if fisher == "sampled":
            u = loss.root([_signs(z.shape, generator, z) for z in loss.z])
        else:
            u = loss.observed(generator)
        yield 1.0 / samples, in_dtypes_of(loss.z, u)


def _columns(loss: LossRoots, examples: int, generator: torch.Generator) -> Iterator[list[Tensor]]:
    sizes = loss.per_example(examples)
    for k, units in enumerate(loss.units(examples)):
        for j in units.tolist():
            numbers = [z.new_zeros(examples, s) for z, s in zip(loss.z, sizes, strict=True)]
            numbers[k][:, j] = _signs((examples,), generator, loss.z[k])
            yield in_dtypes_of(loss.z, loss.columns(loss.spread(numbers)))


def scaled(loss: LossRoots, u: Sequence[Tensor], numbers: Tensor) -> list[Tensor]:
    """u with the entries of each example times its number."""
    factors = loss.spread([numbers[:, None].to(z.dtype).to(z.device) for z in loss.z])
    return [part * factor for part, factor in zip(u, factors, strict=True)]


def _signs(shape: Sequence[int], generator: torch.Generator, like: Tensor) -> Tensor:
    signs = random_signs(math.prod(shape), like.dtype, torch.device("cpu"), generator)
    return signs.view(tuple(shape)).to(like.device)


def spread_entries(axis: Axis, numbers: Tensor, like: Tensor) -> Tensor:
    """Numbers (examples, entries of an example) in the shape of `like`; one column serves all."""
    return spread_blocks(axis, numbers[None], like)[0]


def spread_blocks(axis: Axis, numbers: Tensor, like: Tensor) -> Tensor:
    """The same for numbers (k, examples, entries of an example): k tensors of that shape."""
    examples = numbers.shape[1]
    shape = axis.split(like, examples).movedim(axis.dim - 1, 0).shape
    whole = numbers.expand(-1, -1, like.numel() // examples).reshape(-1, *shape)
    return axis.joined(whole.movedim(1, axis.dim - 1))


# -- A loss whose likelihoods are seen -------------------------------------------------------------


class LikelihoodRoots(LossRoots):
    """Roots of the Fisher matrices of the likelihoods in a loss.

    Args:
        loss: these.
        axes: where the examples are in each.
    """

    def __init__(self, loss: SeenLikelihoods, axes: Sequence[Axis]) -> None:
        self.loss, self.z = loss, loss.z
        self.axes = [
            Axis(axis.dim + likelihood.z.ndim - part.ndim, outer=axis.outer)
            for axis, likelihood in zip(axes, loss.likelihoods, strict=True)
            for part in likelihood.parameters
        ]

    def per_example(self, examples: int) -> list[int]:
        return [z.numel() // examples for z in self.z]

    def spread(self, numbers: Sequence[Tensor]) -> list[Tensor]:
        trios = zip(numbers, self.z, self.axes, strict=True)
        return [spread_entries(axis, part, z) for part, z, axis in trios]

    def root(self, e: Sequence[Tensor]) -> list[Tensor]:
        return [part for each, own in self.loss.pairs(e) for part in each.root(own)]

    def units(self, examples: int) -> list[Tensor]:
        found, axes = [], iter(self.axes)
        for likelihood in self.loss.likelihoods:
            dim = likelihood.row_dim
            for z, axis in zip(likelihood.parameters, axes, strict=False):
                needed = torch.ones(z.shape, dtype=torch.bool)
                if likelihood.is_singular and dim is not None and z.shape[dim] > 1:
                    needed.narrow(dim, -1, 1).fill_(False)
                first = axis.split(needed, examples).select(axis.dim - 1, 0)
                found.append(first.reshape(-1).nonzero()[:, 0])
        return found

    def columns(self, e: Sequence[Tensor]) -> list[Tensor]:
        return [part for each, own in self.loss.pairs(e) for part in each.short_root(own)]

    def observed(self, generator: torch.Generator) -> list[Tensor]:
        parts = []
        for likelihood, slope in zip(self.loss.likelihoods, self.loss.slopes, strict=True):
            rows = likelihood.row_inner(likelihood.parameters, likelihood.parameters)
            signs = _signs(rows.shape, generator, rows)
            parts += likelihood.row_multiples(likelihood.observed(slope), signs)
        return parts


# -- A loss that is no likelihood we know ----------------------------------------------------------


class HessianRoots(LossRoots):
    """Roots of the Hessian of any convex loss in the outputs, whose first dimension is examples.

    Up to 256 outputs of an example, its block is built column by column, for all examples at once,
    and decomposed; beyond, the root is applied by Lanczos.
    """

    def __init__(self, loss: LossHessian) -> None:
        self._loss, self.z = loss, loss.tensors
        self._blocks: Tensor | None = None

    def per_example(self, examples: int) -> list[int]:
        return [z.numel() // examples for z in self.z]

    def spread(self, numbers: Sequence[Tensor]) -> list[Tensor]:
        pairs = zip(numbers, self.z, strict=True)
        return [part.expand(-1, z.numel() // len(part)).reshape(z.shape) for part, z in pairs]

    def observed(self, generator: torch.Generator) -> list[Tensor]:
        raise FunctionError(
            expected="a loss that is a likelihood, as the empirical Fisher matrix needs it",
            got="one that is not seen to be",
            remedy='Give fisher="exact" or "sampled".',
        )

    def root(self, e: Sequence[Tensor]) -> list[Tensor]:
        examples = len(self.z[0])
        if sum(self.per_example(examples)) > MOST_VECTORS or any(
            z.shape[0] != examples for z in self.z
        ):
            return root_times(self._loss, e)
        if self._blocks is None:
            self._blocks = _root_blocks(self._loss, examples)
        flat = torch.cat([part.reshape(examples, -1) for part in e], dim=1)
        rooted = torch.einsum("nij,nj->ni", self._blocks, flat)
        parts = rooted.split(self.per_example(examples), dim=1)
        return [part.reshape(z.shape) for part, z in zip(parts, self.z, strict=True)]


def hessian_blocks(loss: LossHessian, examples: int) -> Tensor:
    """(examples, D, D): the Hessians of single examples, which must not influence one another."""
    sizes = [z.numel() // examples for z in loss.tensors]
    columns = []
    for k, size in enumerate(sizes):
        for j in range(size):
            e = [z.new_zeros(examples, s) for z, s in zip(loss.tensors, sizes, strict=True)]
            e[k][:, j] = 1.0
            parts = loss.product(
                [part.view(z.shape) for part, z in zip(e, loss.tensors, strict=True)]
            )
            columns.append(torch.cat([part.reshape(examples, -1) for part in parts], dim=1))
    H = torch.stack(columns, dim=2)
    return (H + H.mT) / 2


def _root_blocks(loss: LossHessian, examples: int) -> Tensor:
    """(examples, D, D): square roots of these Hessians."""
    values, vectors = torch.linalg.eigh(hessian_blocks(loss, examples))
    most = values.abs().amax(-1, keepdim=True)
    if bool((values < -100 * torch.finfo(values.dtype).eps * most).any()):
        raise FunctionError(
            expected="a loss that is convex in the outputs of the model, as a factored curvature "
            "needs it",
            got="a Hessian in the outputs with negative eigenvalues",
            remedy="Use hesse.ggn_operator or hesse.hessian_operator, which need no convexity.",
        )
    return vectors * values.clamp(min=0.0).sqrt()[:, None, :]


def root_times(loss: LossHessian, e: Sequence[Tensor]) -> list[Tensor]:
    """H^{1/2} e by Lanczos, for any convex loss; negative eigenvalues are zeroed."""
    space = Space.of(loss.tensors, what="outputs")
    H = function_operator(lambda u: space.join(loss.product(space.split(u))), space, symmetric=True)
    z = space.join(e)
    lanczos = LanczosProcess(H, min(_ROOT_STEPS, space.n), z, None)
    for size in range(1, min(_ROOT_STEPS, space.n) + 1):
        lanczos.extend(size)
        if lanczos.beta == 0.0:  # an invariant subspace: the root is exact
            break
    values, coordinates, _ = lanczos.ritz()
    root = coordinates @ (values.clamp(min=0.0).sqrt() * coordinates[0])
    return space.split(space.norm(z) * lanczos.combine(root[:, None])[0])


def loss_roots(f: BoundFunction, leaves: Leaves, axes: Sequence[Axis] | None) -> LossRoots:
    """The outputs at these leaves, with roots of B.

    Args:
        f: the loss of a batch, a `LikelihoodLoss`.
        leaves: the variables.
        axes: where the examples are in each likelihood; None if likelihoods are not seen.
    """
    with twice_differentiable():
        if axes is not None:
            return LikelihoodRoots(seen(f, leaves), axes)
        loss = f.function.function
        inner = BoundFunction(loss, f.variables)
        return HessianRoots(LossHessian(inner.outputs(leaves), inner.loss))
