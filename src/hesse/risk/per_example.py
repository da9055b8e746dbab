# SPDX-License-Identifier: Apache-2.0
"""`PerExample`: the losses of single examples, and products with their Jacobian."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cached_property, partial
from itertools import accumulate, islice
from typing import Protocol

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
from hesse.ranks import Ranks, alike
from hesse.result import OneLine
from hesse.risk.arguments import check_finite_leaves
from hesse.risk.losses_of_examples import LossesOfExamples, RiskOfExamples
from hesse.vectors.exchange import in_order, summed, whole_columns
from hesse.vectors.rows import stacked
from hesse.vectors.space import Space, Tree

# Gradients of single examples are taken from the graph of so many at once: a backward pass spans
# all of them, but small passes take as long as one of a few examples.
_TOGETHER = 8


class SharedRisk(RiskOfExamples, Protocol):
    """A `Risk` that processes may share."""

    @property
    def ranks(self) -> Ranks | None: ...

    @property
    def local(self) -> RiskOfExamples: ...


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

    Where several processes share the data, N counts the examples of all. Vectors of examples are
    those of this process alone, as outputs are (`losses`, `jvp`, the weights of `vjp`, the rows of
    `gradients`), and vectors of parameters are the sums of all. `places` says which examples are
    here. All processes make the same calls, `risk.per_example` itself included.

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

    def __init__(self, risk: SharedRisk) -> None:
        self.ranks, self._share = risk.ranks, risk.share
        self._rank = 0 if self.ranks is None else self.ranks.rank
        self._risk = risk if risk.ranks is None else risk.local
        if self.ranks is not None:  # now, and not when one rank asks
            _ = self._counts
        self._losses: LossesOfExamples | None = None
        self.programs = ProgramCache(risk.data.count)
        self.num_summands = risk.data.count
        self.holds_data = False  # every sweep makes the factors again

    def __repr__(self) -> str:
        return f"PerExample({self.number} examples of {self._risk!r})"

    def __len__(self) -> int:
        """N."""
        return self.number

    @property
    def number(self) -> int:
        """N."""
        return sum(self._counts)

    @property
    def places(self) -> range:
        """The places of the examples of this process among all, in the order of the ranks."""
        ends, rank = [0, *accumulate(self._counts)], self._rank
        return range(ends[rank], ends[rank + 1])

    def here(self, chosen: Tensor) -> Tensor:
        """Of places of examples among all those in this process, counted from its first one."""
        start, stop = self.places.start, self.places.stop
        return chosen[(chosen >= start) & (chosen < stop)] - start

    @cached_property
    def _counts(self) -> list[int]:
        """The number of examples of each process."""
        if self.ranks is None:
            return [total_examples(self._risk.data)]
        with self.ranks.alike():
            here = total_examples(self._risk.data)
        return [int(count) for (count,) in self.ranks.gather(here)]

    @property
    def local(self) -> PerExample:
        """Those of this process, still N times what they add to the risk of all."""
        other = copy.copy(self)
        other.ranks = None
        return other

    @public("hesse.Risk.per_example.losses(params)")
    def losses(self, params: Tree) -> Tensor:
        """l, shape (N,), without a graph; of several processes those of this one.

        Args:
            params: as of the risk.
        """
        params = self._share.whole(params)
        with alike(self.ranks):
            parts = [graph.z[0].detach() for graph in self._graphs(params)]
            return _joined(parts, params)

    @public("hesse.Risk.per_example.jvp(params, directions)")
    def jvp(self, params: Tree, directions: Tree) -> Tensor:
        """The derivative of l along a direction, (N,), or along k of them, (N, k).

        Of several processes the rows of the examples of this one.

        Args:
            params: as of the risk.
            directions: a tree like params, a flat vector (n,), or a block (n, k).

        Cost: a gradient, and 2/3 of one for each direction. No gradient of an example is formed.
        """
        space = self._space(params)
        with alike(self.ranks):
            v = _entered(space, directions)
        params, whole = self._share.whole(params), whole_columns(space, v)

        def compute() -> Tensor:
            return _joined(list(self._jvps(params, whole)), params, whole.shape[1:])

        if self.ranks is None:
            return compute()
        return self.ranks.each(compute, whole)

    def jvps(self, params: Tree, directions: Tree) -> Iterator[Tensor]:
        """As `jvp`, batch by batch: what it returns is their concatenation.

        Several processes gather sharded parameters now; then each takes its batches by itself.
        """
        space = self._space(params)
        whole = whole_columns(space, _entered(space, directions))
        return _steps(self._jvps(self._share.whole(params), whole))

    def _jvps(self, params: Tree, v: Tensor) -> Iterator[Tensor]:
        variables = _variables(params)
        for graph in self._graphs(params):
            columns = [graph.push_forward(variables.split(u))[0] for u in v.view(len(v), -1).T]
            yield torch.stack(columns, 1) if v.ndim == 2 else columns[0]

    @public("hesse.Risk.per_example.vjp(params, weights)")
    def vjp(self, params: Tree, weights: Tensor) -> Tensor:
        """sum_i u_i dl_i/dtheta, a flat vector (n,), or (n, k) for k columns of weights.

        Args:
            params: as of the risk.
            weights: u, shape (N,) or (N, k). Each of several processes gives those of its own
                examples, and has the sum of all.

        Cost: a gradient, and 2/3 of one for each further column.
        """
        with alike(self.ranks):
            self._check_weights(weights)
        space, params = self._space(params), self._share.whole(params)
        if self.ranks is None:
            return self._vjp(params, weights)
        return summed(space, tuple(weights.shape[1:]), lambda: self._vjp(params, weights))

    def _check_weights(self, weights: Tensor) -> None:
        number = len(self.places)
        if weights.ndim not in (1, 2) or len(weights) != number:
            raise ShapeError(
                expected=f"a weight for each example, shape ({number},) or ({number}, k)",
                got=f"shape {tuple(weights.shape)}",
                remedy="Give them in the order of the batches.",
            )

    def _vjp(self, params: Tree, weights: Tensor) -> Tensor:
        columns = weights[:, None] if weights.ndim == 1 else weights
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

        Several processes gather sharded parameters now; then each takes its examples by itself,
        whose rows are whole.

        Args:
            params: as of the risk.
            most: rows held at a time.

        Cost: for an example a backward pass over eight.
        """
        check_count("most", most, 1)
        return _steps(self._chunks(self._share.whole(params), most))

    def gradients_of_all(self, params: Tree, most: int) -> Iterator[Tensor]:
        """As `gradients`, of the examples of all processes in their order, the same on each.

        Of sharded parameters (m, size), the part of this process. One sum for each m rows.
        """
        if self.ranks is None:
            yield from self.gradients(params, most)
            return
        space, params = self._space(params), self._share.whole(params)
        rows, here, N = self._rows(params), self.places, self.number
        for start in range(0, N, most):
            stop = min(start + most, N)
            first, last = (min(max(place, start), stop) for place in (here.start, here.stop))
            mine = partial(_taken, rows, last - first, space.n)
            yield in_order(space, stop - start, first - start, mine)

    def _chunks(self, params: Tree, most: int) -> Iterator[Tensor]:
        rows = self._rows(params)
        while chunk := list(islice(rows, most)):
            yield torch.stack(chunk)

    # -- As a sum over batches ---------------------------------------------------------------------

    def check_at(self, params: Tree) -> None:
        """Test the risk at its first point, and find out how its examples are told apart."""
        self._risk.check_at(params)
        if self._losses is None:
            here = len(self.places)
            self._losses = LossesOfExamples.of(self._risk, self.number, here, params)

    def summands(self) -> Iterator[Summand]:
        """l as the vectors of all batches, one after the other."""
        assert self._losses is not None, "check_at comes first"
        return self._losses.summands()

    def _space(self, params: Tree) -> Space:
        with alike(self.ranks):
            return Space.of(params, what="params", ranks=self.ranks)

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


def _entered(space: Space, directions: Tree) -> Tensor:
    """A direction as a flat vector, several as a block (n, k)."""
    is_tensor = isinstance(directions, Tensor)
    if is_tensor and directions.ndim == 2 and not space.is_point(directions):
        return space.check_vector(directions, what="directions", ndim=2)
    return space.enter(directions, what="directions")[0]


def _taken(rows: Iterator[Tensor], count: int, n: int) -> Tensor:
    """The next rows (count, n)."""
    return stacked(count, islice(rows, count)) if count else torch.zeros(0, n)


def _joined(parts: list[Tensor], params: Tree, row: tuple[int, ...] = ()) -> Tensor:
    """The rows of all batches; none of a process without data."""
    if parts:
        return torch.cat(parts)
    space = Space.of(params, what="params")
    return torch.zeros(0, *row, dtype=space.dtype, device=space.device)


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
