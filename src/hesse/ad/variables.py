# SPDX-License-Identifier: Apache-2.0
"""The leaves of x that vary: the rest of `ad` sees f as a function of a list of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hesse.ad.torch_calls import seen
from hesse.errors import FunctionError, kind_of
from hesse.surroundings import users_contexts
from hesse.vectors.rows import joined
from hesse.vectors.space import Space, Tree

Leaves = Sequence[Tensor]
LeafFunction = Callable[[Leaves], Tensor]
"""The leaves of x -> a scalar."""


@dataclass(frozen=True)
class Variables:
    """Which leaves of x vary: all but the parameters frozen by `requires_grad=False`.

    A product sees the varying leaves only; a frozen leaf has zero rows and columns.
    """

    space: Space
    constants: tuple[Tensor | None, ...]
    x: tuple[Tensor, ...]
    """The varying leaves, which the leaves of a direction look like."""

    @staticmethod
    def of(x: Tree, space: Space) -> Variables:
        """The variables of x, detached."""
        leaves = space.leaves(x, what="x")
        frozen = [
            isinstance(leaf, torch.nn.Parameter) and not leaf.requires_grad for leaf in leaves
        ]
        if all(frozen):
            raise FunctionError(
                expected="at least one parameter that is not frozen",
                got=f"requires_grad=False on all of {space.describe()}",
                remedy="Unfreeze some with .requires_grad_(True), or give plain tensors, which "
                "always vary.",
            )
        fresh = [detached(leaf) for leaf in leaves]
        constants = tuple(leaf if cold else None for leaf, cold in zip(fresh, frozen, strict=True))
        varying = [leaf for leaf, cold in zip(fresh, frozen, strict=True) if not cold]
        return Variables(space, constants, tuple(varying))

    @cached_property
    def frozen(self) -> list[Tensor]:
        """The leaves that do not vary."""
        return [leaf for leaf in self.constants if leaf is not None]

    @property
    def nbytes(self) -> int:
        """The bytes of the varying leaves."""
        return sum(leaf.nbytes for leaf in self.x)

    @cached_property
    def key(self) -> Hashable:
        """What two points have in common if one program serves both."""
        return self.space.names, tuple(leaf is None for leaf in self.constants)

    def select(self, leaves: Leaves) -> list[Tensor]:
        """The varying leaves among all leaves."""
        return [leaf for leaf, cold in zip(leaves, self.constants, strict=True) if cold is None]

    def expand(self, varying: Leaves) -> list[Tensor]:
        """All leaves of a gradient or product, zero where frozen."""
        rest = iter(varying)
        return [next(rest) if cold is None else torch.zeros_like(cold) for cold in self.constants]

    def tree(self, varying: Leaves) -> Tree:
        """x with these varying leaves."""
        rest = iter(varying)
        return self.space.build([next(rest) if cold is None else cold for cold in self.constants])

    @cached_property
    def sizes(self) -> list[int]:
        """Number of entries of every leaf, frozen ones included."""
        return self.space.sizes

    def flatten(self, varying: Leaves) -> Tensor:
        """The flat vector, shape (n,), of a gradient or product; may share memory with one leaf."""
        parts = self._flat(self.expand(varying))
        return joined(parts) if len(parts) > 1 else parts[0]

    def join(self, leaves: Leaves) -> Tensor:
        """The entries of leaves side by side, as programs record it; may share memory with one."""
        parts = self._flat(leaves)
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _flat(self, leaves: Leaves) -> list[Tensor]:
        return [leaf.detach().reshape(-1).to(self.space.dtype) for leaf in leaves]

    def store(self, rows: Tensor, whole: Tensor, coefficient: float, *, accumulate: bool) -> None:
        """rows = coefficient * whole, or += : flat vectors (..., n) of joined varying leaves."""
        varying = iter(whole.split([leaf.numel() for leaf in self.x], dim=-1))
        for part, cold in zip(rows.split(self.sizes, dim=-1), self.constants, strict=True):
            if cold is not None:
                if not accumulate:
                    part.zero_()
            elif accumulate:
                part.add_(next(varying), alpha=coefficient)
            else:
                part.copy_(next(varying))
                if coefficient != 1.0:
                    part.mul_(coefficient)

    def split(self, vector: Tensor) -> list[Tensor]:
        """The varying leaves of a flat vector."""
        parts = zip(self.select(vector.split(self.sizes)), self.x, strict=True)
        return [part.view_as(leaf).to(leaf.dtype) for part, leaf in parts]


@dataclass(frozen=True)
class BoundFunction:
    """A function of a tree as one of its varying leaves.

    Called it gives a scalar. A composition loss(outputs(x)) has its two parts as well.
    """

    function: Any
    variables: Variables

    def __call__(self, varying: Leaves) -> Tensor:
        x = self.variables.tree(varying)
        with users_contexts(), seen():
            return check_scalar(self.function(x))

    @property
    def knows_its_leaves(self) -> bool:
        """Whether the function itself checks that it reaches x by its argument only."""
        return getattr(self.function, "knows_its_leaves", False)

    def outputs(self, varying: Leaves) -> Any:
        """What the loss is a function of; of a plain function its own result."""
        outputs, x = getattr(self.function, "outputs", self.function), self.variables.tree(varying)
        with users_contexts(), seen():
            return outputs(x)

    def loss(self, outputs: Any) -> Tensor:
        """The scalar loss of outputs."""
        with users_contexts(), seen():
            return check_scalar(self.function.loss(outputs))


def detached(leaf: Tensor) -> Tensor:
    """A leaf without history; an inference tensor becomes a normal one by a copy."""
    if not leaf.is_inference():
        return leaf.detach()
    with torch.inference_mode(False):
        return leaf.clone()


def number(value: Tensor) -> Tensor:
    """A scalar without history, in memory of its own.

    `mse_loss`, for one, leaves it in the memory of all that it is the mean of.
    """
    return value.detach().clone()


def tracked(leaves: Leaves) -> list[Tensor]:
    """Fresh leaves that require a gradient: nothing of the caller's tensors is touched."""
    return [detached(leaf).requires_grad_() for leaf in leaves]


def check_scalar(value: Any, what: str = "f(x)") -> Tensor:
    """`value` itself if it is a real scalar tensor; `what` names it in an error."""
    if isinstance(value, Tensor) and value.ndim == 0 and value.dtype.is_floating_point:
        return value
    got = (
        f"a tensor of shape {tuple(value.shape)} and dtype {value.dtype}"
        if isinstance(value, Tensor)
        else kind_of(value)
    )
    raise FunctionError(
        expected=f"{what} to be a scalar: a floating-point tensor of shape ()",
        got=got,
        remedy="Reduce it, with .sum() or .mean() (a loss: reduction='mean'), and return the "
        "tensor itself rather than .item() or a tuple.",
    )
