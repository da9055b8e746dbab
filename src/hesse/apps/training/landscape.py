# SPDX-License-Identifier: Apache-2.0
"""`landscape`: the loss on a plane through a point, along eigenvectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.ad.summands import Summand, as_sum, check_at
from hesse.apps.training.plane import Plane, given_directions, plane_of
from hesse.boundary import public
from hesse.checkpoint import Checkpoint, FilePath
from hesse.curvature.first_order import first_order
from hesse.curvature.hessian import hessian_operator
from hesse.curvature.point import checked_point, point_of
from hesse.errors import ArgumentError, FunctionError, Status, check_count, is_number, kind_of
from hesse.progress import Run
from hesse.ranks import Ranks, check_same_checkpoint
from hesse.result import Result, pyplot
from hesse.risk.risk import Risk
from hesse.vectors.space import Space, Tree


@dataclass(frozen=True, repr=False)
class Landscape(Result):
    """The loss on a grid of points theta + a u + b v."""

    values: Tensor
    """(grid, grid): the loss, a changing from row to row and b from column to column; NaN where it
    is NaN."""
    quadratic: Tensor
    """(grid, grid): R + g's + s'Hs / 2 on the same points, what second derivatives know of it."""
    a: Tensor
    """(grid,): from -radius to radius."""
    b: Tensor
    """(grid,): likewise."""
    eigenvalues: Tensor
    """(2,): u'Hu / u'u and v'Hv / v'v, of eigenvectors their eigenvalues."""
    directions: Tensor
    """(n, 2): u and v; of sharded parameters the rows of this process."""
    products: int
    """Products with the Hessian."""

    @public("hesse.apps.Landscape.plot()")
    def plot(self, axes: Any = None, *, levels: int | Sequence[float] = 20) -> Any:
        """Draw contours of the loss, and dashed ones of the quadratic, with matplotlib.

        Args:
            axes: where to draw; new ones by default.
            levels: how many contours, or where.

        Returns:
            The axes. They are labelled with the eigenvalues.
        """
        if axes is None:
            axes = pyplot().subplots()[1]
        a, b = self.a.cpu().numpy(), self.b.cpu().numpy()
        drawn = axes.contourf(a, b, self.values.T.cpu().numpy(), levels=levels)
        model = self.quadratic.T.cpu().numpy()
        axes.contour(a, b, model, levels=drawn.levels, colors="white", linestyles="--")
        axes.plot(0.0, 0.0, "+", color="white")
        first, second = self.eigenvalues.tolist()
        axes.set(xlabel=f"a, along λ = {first:.3g}", ylabel=f"b, along λ = {second:.3g}")
        axes.figure.colorbar(drawn, ax=axes)
        return axes


@public("hesse.apps.landscape(risk, params)")
def landscape(
    risk: Risk | Callable[[Any], Tensor],
    params: Tree | None = None,
    directions: Literal["top", "ends", "gradient"] | tuple[Tree, Tree] = "top",
    radius: float | tuple[float, float] | None = None,
    grid: int = 41,
    *,
    generator: torch.Generator | None = None,
    progress: bool = False,
    checkpoint: FilePath = None,
) -> Landscape:
    r"""The loss on a plane, R(theta + a u + b v), and the quadratic that touches it.

    Random directions show an average of the spectrum, in which the few large eigenvalues drown;
    along eigenvectors the picture says how good the second-order model is, and how far.

    Args:
        risk: a `Risk`, or another scalar function of one argument.
        params: the centre; of a risk by default the model as it is now.
        directions: "top": the eigenvectors of the two largest eigenvalues of the Hessian; "ends":
            of the largest and the smallest; "gradient": that of the gradient, and the top
            eigenvector made orthogonal to it; or two vectors u and v, flat or trees, taken as they
            are.
        radius: of a and of b, or of each. Default: where the quadratic term is as large as the
            loss itself, but at most |theta|.
        grid: points along each direction; of an odd number one is the centre.
        generator: of the search for eigenvectors.
        progress: show a bar that counts evaluations.
        checkpoint: as in `solve`; the state is saved after every row of the grid.

    Returns:
        Landscape(values, quadratic, a, b, eigenvalues, directions, products), with `plot()`. Of
        several processes all have the values of the risk of all.

    Cost: grid^2 evaluations, a gradient, some tens of products. The data are swept once: all points
        are taken with one batch before the next one is read; no graph is kept.

    Raises:
        HesseError: no scalar function; directions that do not fit, are zero or parallel; a radius
            that is not above zero; fewer than three points.

    References: Li et al. 2018, arXiv:1712.09913 (random directions); Yao et al. 2020,
        arXiv:1912.07145 (eigenvectors).

    >>> f = lambda x: 2 * x[0] ** 2 + x[1] ** 2
    >>> plane = landscape(f, torch.tensor([0.0, 1.0]), radius=1.0, grid=3)
    >>> plane.eigenvalues
    tensor([4., 2.], dtype=torch.float64)
    >>> plane.values[0, 1], plane.quadratic[0, 1]                    # 2 + 1, at a = -1 and b = 0
    (tensor(3.0000), tensor(3.0000))
    """
    if not callable(risk):
        raise FunctionError(
            expected="a hesse.Risk, or a scalar function of one argument",
            got=kind_of(risk),
            remedy="Build hesse.Risk(model, loss, data).",
        )
    count = check_count("grid", grid, 3)
    given = _radii(radius)
    if isinstance(risk, Risk):
        params = checked_point(risk, params)
        check_same_checkpoint(risk.ranks, checkpoint)
    else:
        params = point_of(risk, params, "params")
        check_at(risk, params)
    H = hessian_operator(risk, params)
    state = _Evaluations(torch.zeros(count, count, dtype=H.dtype))
    named = directions if isinstance(directions, str) else given_directions(H.domain, directions)
    theta = H.domain.flatten(params)
    file = Checkpoint(
        *(checkpoint, H),
        function="landscape",
        directions=named,
        radius=given,
        grid=count,
        params=theta,
        centre=None if checkpoint is None else first_order(H),
    )
    file.resume(state)
    if state.directions is None:
        plane = plane_of(H, theta, named, generator)
        state.directions, state.found = plane.directions, plane.found
    plane = Plane(H, theta, state.directions, state.found)
    reach = [plane.reach(0), plane.reach(1)] if given is None else given
    a, b = (torch.linspace(-r, r, count, dtype=torch.float64) for r in reach)
    _evaluate(risk, plane, a, b, progress, file, state)
    return Landscape(
        state.values,
        plane.quadratic(a, b),
        a,
        b,
        plane.eigenvalues,
        plane.directions,
        plane.products,
    )


@dataclass
class _Evaluations:
    """How far the sum over the summands of f has come."""

    values: Tensor
    directions: Tensor | None = None
    """u and v, (n, 2)."""
    found: int = 0
    """Products that the search for these took."""
    summands: int = 0
    """Those that were taken at all points."""
    rows: int = 0
    """Rows of the grid at which the next one was."""
    products: int = 0
    """What the bar shows: evaluations."""


def _evaluate(
    f: Any,
    plane: Plane,
    a: Tensor,
    b: Tensor,
    progress: bool,
    file: Checkpoint,
    state: _Evaluations,
) -> None:
    """Add f at all points, one summand of f after the other; those of several ranks at once."""
    ranks, total, points = plane.H.domain.ranks, as_sum(f), _Points.of(plane, a, b)
    evaluations = len(a) * len(b) * max(total.num_summands, 1)
    with Run("landscape", progress=progress, total=evaluations) as run, torch.no_grad():

        def row_of(summand: Summand | None, i: int) -> Tensor:
            """Its values at a row of the grid; zeros of a process that has no summand left."""
            row = torch.zeros_like(state.values[i])
            for j in range(len(b)):
                if summand is not None:
                    row[j] = summand.coefficient * float(summand.function(points.at(i, j)))
                state.products += 1
                run.show(state)
            return row

        for number, summand in enumerate(_rounds(total, ranks)):
            if number < state.summands:
                continue
            for i in range(state.rows, len(a)):
                row = partial(row_of, summand, i)
                values = state.values[i]
                values += row() if ranks is None else ranks.sum_of(row, values)
                state.rows = i + 1
                file.save(state)
            state.summands, state.rows = number + 1, 0
    if run.status is Status.INTERRUPTED:
        raise KeyboardInterrupt  # a sum over some of the batches is no loss


@dataclass(frozen=True)
class _Points:
    """theta + a u + b v, whole in every process."""

    space: Space
    theta: Tensor
    directions: Tensor
    a: Tensor
    b: Tensor

    @staticmethod
    def of(plane: Plane, a: Tensor, b: Tensor) -> _Points:
        """Those of a grid; three sharded vectors are gathered."""
        space, theta, directions = plane.H.domain, plane.theta, plane.directions
        if space.shards is not None:
            whole = space.whole(torch.stack([theta, *directions.T]))
            theta, directions = whole[0], whole[1:].T
        return _Points(space.whole_space, theta, directions, a, b)

    def at(self, i: int, j: int) -> Tree:
        step = torch.stack([self.a[i], self.b[j]]).to(self.directions)
        return self.space.unflatten(self.theta + self.directions @ step)


def _rounds(total: Any, ranks: Ranks | None) -> Iterator[Summand | None]:
    """The summands; those of each process, and None where others have more."""
    if ranks is None:
        yield from total.summands()
        return
    summands = total.local.summands()
    while True:
        with ranks.alike():
            summand = next(summands, None)
        if all(row[0] for row in ranks.gather(summand is None)):
            return
        yield summand


def _radii(radius: Any) -> list[float] | None:
    """The radius of a and of b."""
    if radius is None:
        return None
    radii = list(radius) if isinstance(radius, (tuple, list)) else [radius, radius]
    good = len(radii) == 2 and all(is_number(r) and 0.0 < r < math.inf for r in radii)
    if not good:
        raise ArgumentError(
            expected="radius > 0, or one for each of two directions",
            got=repr(radius),
            remedy="Leave it out, to take it from the curvature.",
        )
    return [float(r) for r in radii]
