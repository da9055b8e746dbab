# SPDX-License-Identifier: Apache-2.0
"""`PerExample`: the losses of single examples, and products with their Jacobian."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor

from hesse.ad.double_backward import twice_differentiable
from hesse.ad.jacobian import JacobianGraph
from hesse.ad.summands import Summand
from hesse.ad.variables import BoundFunction, Variables, tracked
from hesse.boundary import public
from hesse.data.selection import count_examples, total_examples
from hesse.engine.program_cache import ProgramCache
from hesse.errors import ShapeError, check_count
from hesse.result import OneLine
from hesse.risk.arguments import check_finite_leaves
from hesse.risk.losses_of_examples import LossesOfExamples, RiskOfExamples
from hesse.risk.sharing import check_is_whole
from hesse.vectors.space import Space, Tree

# Gradients of single examples are taken from the graph of so many at once: a backward pass spans
# all of them, but small passes take as long as one of a few examples.
_TOGETHER = 8


class PerExample(OneLine):
    r"""The losses of the examples of a `Risk`, one by one; `risk.per_example`.

    $$ \ell_i(\theta) = N \frac{\partial R_w(\theta)}{\partial w_i}, \qquad
       \frac1N \sum_i \ell_i(\theta) = R(\theta) - \frac{\lambda}{2} \lVert\theta\rVert^2 $$

    with R_w of `Risk.weighted`: l_i is N times what example i adds to the data part of the risk,
    without weight decay. Where examples weigh alike in a mean it is the loss of the example; with
    class weights or tokens it has the share of the example in the mean; of a sum it is N times the
    loss. The order is that of the batches, which may be of any sizes. Of losses that torch does not
    compute, the examples are evaluated one at a time, with a warning.

    `jacobian_operator(risk.per_example, params)` is dl/dtheta as an operator.

    >>> x = torch.tensor([[1.0], [2.0]])
    >>> from hesse.risk import Risk
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> each = Risk(model, torch.nn.MSELoss(), (x, 0 * x), weight_decay=1.0).per_example
    >>> params = {"weight": torch.tensor([[3.0]])}
    >>> each.losses(params)                                         # (3 x)^2
    tensor([ 9., 36.])
    >>> each.jvp(params, {"weight": torch.tensor([[0.5]])})         # 6 x^2 / 2
    tensor([ 3., 12.])
    """

    def __init__(self, risk: RiskOfExamples) -> None:
        check_is_whole(risk)
        self._risk = risk
        self._losses: LossesOfExamples | None = None
        self.programs = ProgramCache(risk.data.count)
        self.num_summands = risk.data.count
        self.holds_data = False  # every sweep makes the factors again

    def __repr__(self) -> str:
        return f"PerExample({self.number} examples of {self._risk!r})"

    def __len__(self) -> int:
        """N."""
        return self.number

    @cached_property
    def number(self) -> int:
        """N."""
        return total_examples(self._risk.data)

    @public("hesse.Risk.per_example.losses(params)")
    def losses(self, params: Tree) -> Tensor:
        """l, shape (N,), without a graph.

        Args:
            params: as of the risk.
        """
        parts = [graph.z[0].detach() for graph in self._graphs(params)]
        return torch.cat(parts)

    @public("hesse.Risk.per_example.jvp(params, directions)")
    def jvp(self, params: Tree, directions: Tree) -> Tensor:
        """The derivative of l along a direction, (N,), or along k of them, (N, k).

        Args:
            params: as of the risk.
            directions: a tree like params, a flat vector (n,), or a block (n, k).

        Cost: a gradient, and 2/3 of one for each direction. No gradient of an example is formed.
        """
        return torch.cat(list(self.jvps(params, directions)))

    def jvps(self, params: Tree, directions: Tree) -> Iterator[Tensor]:
        """As `jvp`, batch by batch: what it returns is their concatenation."""
        return _steps(self._jvps(params, directions))

    def _jvps(self, params: Tree, directions: Tree) -> Iterator[Tensor]:
        space = Space.of(params, what="params")
        is_tensor = isinstance(directions, Tensor)
        is_block = is_tensor and directions.ndim == 2 and not space.is_point(directions)
        if is_block:
            block = space.check_vector(directions, what="directions", ndim=2)
        else:
            block = space.enter(directions, what="directions")[0][:, None]
        variables = _variables(params)
        for graph in self._graphs(params):
            columns = [graph.push_forward(variables.split(v))[0] for v in block.T]
            yield torch.stack(columns, 1) if is_block else columns[0]

    @public("hesse.Risk.per_example.vjp(params, weights)")
    def vjp(self, params: Tree, weights: Tensor) -> Tensor:
        """sum_i u_i dl_i/dtheta, a flat vector (n,), or (n, k) for k columns of weights.

        Args:
            params: as of the risk.
            weights: u, shape (N,) or (N, k).

        Cost: a gradient, and 2/3 of one for each further column.
        """
        if weights.ndim not in (1, 2) or len(weights) != self.number:
            raise ShapeError(
                expected=f"a weight for each example, shape ({self.number},) or ({self.number}, k)",
                got=f"shape {tuple(weights.shape)}",
                remedy="Give them in the order of the batches.",
            )
        columns = weights.reshape(self.number, -1)
        variables, start = _variables(params), 0
        space = variables.space
        total = torch.zeros(space.size, columns.shape[1], dtype=space.dtype, device=space.device)
        for graph in self._graphs(params):
            here = columns[start : start + len(graph.z[0])].to(graph.z[0])
            pulled = [variables.flatten(graph.pull_back([u])) for u in here.T]
            total += torch.stack(pulled, 1)
            start += len(graph.z[0])
        return total if weights.ndim == 2 else total[:, 0]

    @public("hesse.Risk.per_example.gradients(params, most={most})")
    def gradients(self, params: Tree, most: int = 256) -> Iterator[Tensor]:
        """dl_i/dtheta as rows, (m, n) for at most `most` examples at a time, without weight decay.

        Args:
            params: as of the risk.
            most: rows held at a time.

        Cost: for an example a backward pass over eight.
        """
        check_count("most", most, 1)
        return _steps(self._chunks(params, most))

    def _chunks(self, params: Tree, most: int) -> Iterator[Tensor]:
        rows = self._rows(params)
        while chunk := list(islice(rows, most)):
            yield torch.stack(chunk)

    # -- As a sum over batches ---------------------------------------------------------------------

    def check_at(self, params: Tree) -> None:
        """Test the risk at its first point, and find out how its examples are told apart."""
        self._risk.check_at(params)
        if self._losses is None:
            self._losses = LossesOfExamples.of(self._risk, self.number, params)

    def summands(self) -> Iterator[Summand]:
        """l as the vectors of all batches, one after the other."""
        assert self._losses is not None, "check_at comes first"
        return self._losses.summands()

    def _graphs(self, params: Tree) -> Iterator[JacobianGraph]:
        self.check_at(params)
        variables = _variables(params)
        for summand in self.summands():
            yield _graph(summand, variables)

    def _rows(self, params: Tree) -> Iterator[Tensor]:
        self.check_at(params)
        assert self._losses is not None
        variables = _variables(params)
        zero = torch.zeros_like(variables.flatten(variables.x))
        for _, batch in self._losses.risk.batches():
            for share, part in self._losses.parts(batch, _bounds(count_examples(batch))):
                if share == 0.0:  # the loss sees nothing of it
                    yield from zero.expand(count_examples(part), -1)
                    continue
                graph = _graph(self._losses.summand(share, part), variables)
                for unit in torch.eye(len(graph.z[0])).to(graph.z[0]):
                    yield variables.flatten(graph.pull_back([unit])).clone()


def _steps(pieces: Iterator[Tensor]) -> Iterator[Tensor]:
    """The pieces, each of which is made within the boundary."""
    while (piece := _next(pieces)) is not None:
        yield piece


@public("hesse.Risk.per_example")
def _next(pieces: Iterator[Tensor]) -> Tensor | None:
    return next(pieces, None)


def _variables(params: Tree) -> Variables:
    space = Space.of(params, what="params")
    remedy = "Look for the step that made them so; a smaller one, or more damping, may do."
    check_finite_leaves(params, space, "params", remedy)
    return Variables.of(space.copy(params), space)


def _graph(summand: Summand, variables: Variables) -> JacobianGraph:
    """The graph of the losses of a batch."""
    with twice_differentiable():
        leaves = tracked(variables.x)
        losses: Tensor = BoundFunction(summand.function, variables).outputs(leaves)
        return JacobianGraph([losses.to(variables.space.dtype)], leaves)


def _bounds(number: int) -> list[int]:
    """Where to cut a batch into parts of about equal size; never a single example of several."""
    pieces = -(-number // _TOGETHER)
    return [number * k // pieces for k in range(pieces + 1)]
