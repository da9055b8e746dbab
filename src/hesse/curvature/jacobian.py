# SPDX-License-Identifier: Apache-2.0
"""The Jacobian of a function or of the outputs of a model at a point, as an operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from hesse.ad.by_jacobian import ByJacobian
from hesse.ad.definition import Definition, Quantity, Vectors
from hesse.ad.double_backward import noting_recomputation, twice_differentiable
from hesse.ad.graph_nodes import graph_nodes, leaves_of
from hesse.ad.jacobian import random_like
from hesse.ad.other_leaves import check_earlier_leaves, mark
from hesse.ad.slope_check import check_slope
from hesse.ad.summands import as_sum, check_at
from hesse.ad.variables import BoundFunction, Leaves, Variables, tracked
from hesse.boundary import public
from hesse.curvature.operator import CurvatureOperator
from hesse.curvature.point_product import summand_points
from hesse.curvature.rows_of_ranks import RowsOfRanks
from hesse.engine.options import ProductOptions
from hesse.engine.row_layout import RowLayout
from hesse.engine.summed_product import PREPARED_MODES, PreparedMode
from hesse.errors import check_choice
from hesse.ranks import Ranks
from hesse.risk.per_example import PerExample
from hesse.risk.risk import Risk
from hesse.tracing.precision import Precision, check_precision
from hesse.vectors.space import Space, Tree
from hesse.vectors.trees import walk


class _Linearisation(ByJacobian):
    """f at x, by the graphs of its outputs and of J'u."""

    def __init__(self, f: BoundFunction, x: Leaves) -> None:
        with twice_differentiable():
            leaves = tracked(x)
            mark(leaves, f)
            z, recomputes = noting_recomputation(lambda: _output_leaves(f.outputs(leaves)))
        if not f.knows_its_leaves:
            check_earlier_leaves(leaves_of(graph_nodes(*z)).values(), f, now=leaves)
        super().__init__(z, leaves)
        self._f, self._leaves = f, leaves
        self.needs_check = recomputes and not f.knows_its_leaves

    def check(self) -> None:
        """Raise unless the gradient of w'z is that of its value, where it may be another."""
        if not self.needs_check:
            return
        w = random_like(self._jacobian.z)

        def along(leaves: Leaves) -> Tensor:
            z = zip(_output_leaves(self._f.outputs(leaves)), w, strict=True)
            return torch.stack([(a.detach() * b).sum(dtype=torch.float64) for a, b in z]).sum()

        with twice_differentiable():
            gradient = self._jacobian.pull_back(w)
            check_slope(along, self._leaves, along(self._leaves), gradient)

    @property
    def outputs(self) -> list[Tensor]:
        return [z.detach() for z in self._jacobian.z]

    @property
    def gradient(self) -> list[Tensor]:
        return []

    def apply(self, quantity: str, direction: Leaves) -> Sequence[Tensor]:
        """J v, or J' u."""
        if quantity == "product":
            return self._jacobian.push_forward(direction)
        return self._jacobian.pull_back(direction)


@dataclass(frozen=True)
class JacobianDefinition(Definition):
    """J v from the variables to the outputs, and J' u back."""

    linearise = _Linearisation
    is_sum = False
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity("product", "variables", "outputs"),
        Quantity("adjoint", "outputs", "variables"),
    )

    def evaluate(self, f: BoundFunction, x: Leaves) -> list[Tensor]:
        with twice_differentiable():
            return [z.detach() for z in _output_leaves(f.outputs(x))]


@public("hesse.jacobian_operator(g, x)", nested=False)
def jacobian_operator(
    g: Callable[[Any], Any],
    x: Tree,
    *,
    mode: PreparedMode = "auto",
    precision: Precision = "highest",
) -> CurvatureOperator:
    r"""The Jacobian of g at x, as a rectangular operator with an adjoint.

    $$ J = \frac{dg}{dx} \in \mathbb{R}^{m \times n} $$

    Args:
        g: function of one argument whose result is a tensor or a tree of tensors; of a `Risk` the
            outputs of its model, those of several batches concatenated along the first dimension.
            With `group=` each process has those of its part of the data.
        x: the point, as in `hvp`; it is copied.
        mode, precision: as in `hessian_operator`; there are no one-shot modes.

    Returns:
        An operator J. `J @ v` is J v, in the form of g(x) for a v like x; `J.T @ u` is J' u.

    Cost: g is evaluated once, for the shape of its result. J v is a third of a gradient for each
    pass through a retained graph, and two such passes; J' u takes one backward pass, 2/3 of a
    gradient.

    Raises:
        HesseError: g does not depend on x, or its result has no floating-point tensor; batches
            whose outputs cannot be concatenated, or that a loader gives in another order later.

    >>> import torch
    >>> J = jacobian_operator(lambda x: torch.stack([x[0] * x[1], x[0]]), torch.tensor([2.0, 3.0]))
    >>> J.to_dense()
    tensor([[3., 2.],
            [1., 0.]])
    >>> J.T @ torch.tensor([1.0, 1.0])
    tensor([4., 2.])
    """
    check_choice("mode", mode, ["auto", *PREPARED_MODES])
    check_precision(precision, mode)
    options = ProductOptions(mode, precision)
    if isinstance(g, (Risk, PerExample)) and g.ranks is not None:
        part = g.with_unseen_batches().local if isinstance(g, Risk) else g.local
        return shared_jacobian(g.ranks, part if part.num_summands else None, x, options)
    return _jacobian(g, x, options)


def shared_jacobian(
    ranks: Ranks,
    part: Any,
    x: Tree,
    options: ProductOptions,
    what: str = "x",
) -> CurvatureOperator:
    """The Jacobian of functions of x, one of each rank; None where there is none."""

    def make(x: Tree) -> CurvatureOperator | None:
        return None if part is None else _jacobian(part, x, options)

    J = RowsOfRanks.of(ranks, make, x, what, JacobianDefinition().name)
    return cast(CurvatureOperator, J)  # it has all that one calls of such an operator


def _jacobian(g: Any, x: Tree, options: ProductOptions) -> CurvatureOperator:
    """That of a function in this process."""
    check_at(g, x)
    if isinstance(g, Risk):
        g = g.with_unseen_batches()
    definition, space = JacobianDefinition(), Space.of(x)
    layout = RowLayout.of(_output_spaces(definition, g, Variables.of(space.copy(x), space)))
    layouts: dict[Vectors, RowLayout] = {"outputs": layout}
    return CurvatureOperator(definition, g, x, options, layouts)


def _output_leaves(outputs: Any) -> list[Tensor]:
    return [leaf for _, leaf in walk(outputs, "g(x)")]


def _output_spaces(definition: JacobianDefinition, g: Any, variables: Variables) -> list[Space]:
    """The spaces of the outputs of all batches."""
    spaces = []
    for _, point in summand_points(definition, as_sum(g), variables):
        x = variables.x if point.function.knows_its_leaves else tracked(variables.x)
        mark(x, point.function)
        with twice_differentiable():  # g may differentiate a network inside
            spaces.append(Space.of(point.function.outputs(x), what="g(x)"))
    return spaces
