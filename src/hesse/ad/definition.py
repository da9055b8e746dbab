# SPDX-License-Identifier: Apache-2.0
"""What the definition of a curvature matrix says: what is computed, from which vectors to which.

A definition is all that the engine knows of a Hessian, a Gauss-Newton matrix or a Jacobian. It
evaluates a function at a point, and linearises it there: the linearisation gives quantities that
depend on a direction. The engine traces these, partitions them and takes them over sums of batches.

A direction or a result is either shared by all summands of the function (the variables) or each
summand has a slice of its own (its outputs). Results that are shared are added, the others lie side
by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from hesse.ad.double_backward import twice_differentiable
from hesse.ad.hessian import value_and_gradient
from hesse.ad.product import Mode
from hesse.ad.variables import BoundFunction, Leaves, number

Vectors = Literal["variables", "outputs"]


@dataclass(frozen=True)
class Quantity:
    """What depends on a direction: a matrix times it, or a number.

    Args:
        name: "product", "adjoint" or "curvature".
        direction: the vectors that the direction is one of.
        result: the vectors that the result is one of; None for a number.
    """

    name: str
    direction: Vectors = "variables"
    result: Vectors | None = "variables"


PRODUCT = Quantity("product")
CURVATURE = Quantity("curvature", result=None)


class Linearisation(Protocol):
    """A function at one point, with the autograd graph of its derivatives."""

    def __init__(self, f: BoundFunction, x: Leaves) -> None: ...

    @property
    def outputs(self) -> list[Tensor]:
        """The tensors that the function gives: f(x) alone, or the leaves of g(x)."""
        ...

    @property
    def gradient(self) -> list[Tensor]:
        """The gradient of a scalar f, one tensor a variable; empty where the function has none."""
        ...

    @property
    def custom_function(self) -> str | None:
        """The name of an operation in f whose second derivative must be checked, if any."""
        ...

    @property
    def node_names(self) -> list[str]:
        """The names of the nodes of the graph of f."""
        ...

    @property
    def needs_check(self) -> bool:
        """Whether `check` has something to look at."""
        ...

    @property
    def retained(self) -> list[Tensor]:
        """The tensors whose graphs are retained."""
        ...

    def check(self) -> None:
        """Raise, or warn, if the derivative is not that of f for another reason than rounding."""
        ...

    def apply(self, quantity: str, direction: Leaves) -> Sequence[Tensor] | Tensor:
        """A quantity in a direction, given as leaves; the leaves of the result, or a number."""
        ...


class Definition:
    """A curvature matrix, as a function of a point and a direction that is linear in the latter.

    A subclass is a frozen dataclass of its settings, which tell its programs from those of others.
    """

    linearise: ClassVar[type[Linearisation]]
    """(f, x) -> f at x, with the graph of its derivatives."""
    quantities: ClassVar[tuple[Quantity, ...]] = (PRODUCT,)
    """What depends on a direction; the product comes first."""
    is_sum: ClassVar[bool] = True
    """Whether the matrix is the weighted sum of those of the summands. Otherwise their rows lie one
    below the other, and a summand without data, such as weight decay, has none."""
    one_shot_modes: ClassVar[Mapping[str, Mode]] = {}
    """Ways to take a product without preparation, by name, in the order to try them in."""

    @property
    def name(self) -> str:
        """Of the matrix, for its `repr`."""
        return type(self).__name__.removesuffix("Definition")

    @property
    def about(self) -> str:
        """Which of the matrices of this name it is, for its `repr`; empty if there is only one."""
        return ""

    def evaluate(self, f: BoundFunction, x: Leaves) -> list[Tensor]:
        """The outputs of f at x, as f itself computes them."""
        with twice_differentiable():  # not no_grad: f may differentiate a network inside
            return [number(f(x))]

    def value_and_gradient(self, f: BoundFunction, x: Leaves) -> tuple[Tensor, list[Tensor]]:
        """f(x) and its gradient, of a scalar f, without a graph."""
        return value_and_gradient(f, x)

    def diagonals(self, f: Any, x: Any) -> Any:
        """How the diagonal is computed, for all points of f; None where there is no way.

        `diagonals.at(variables)` is a `ComputedDiagonal`, or None.
        """
        del f, x
        return None
