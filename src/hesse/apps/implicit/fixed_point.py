# SPDX-License-Identifier: Apache-2.0
"""`fixed_point`: the fixed point of a map as a differentiable function of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hesse.apps.implicit.arguments import system_of
from hesse.apps.implicit.equation import FixedPoint
from hesse.apps.implicit.implicit_function import ImplicitFunction, Solve
from hesse.apps.implicit.root import SolutionOf
from hesse.boundary import public
from hesse.krylov.auto import Auto
from hesse.krylov.method import Method
from hesse.krylov.solve import Name
from hesse.operators.algebra import LinearOperator
from hesse.vectors.space import Tree


@public("hesse.apps.fixed_point(T, x0)")
def fixed_point(
    T: Callable[[Any, Any], Any],
    x0: Tree,
    *,
    solve: Solve | None = None,
    rtol: float = 1e-5,
    method: Name | Method | Auto = "auto",
    preconditioner: LinearOperator | Tensor | str | None = None,
    max_iterations: int | None = None,
    warm_start: bool = True,
    estimate_error: bool = False,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> ImplicitFunction:
    r"""The fixed point x(l) = T(x(l), l), as a function of l that can be differentiated.

    $$ \frac{dL}{dl} = T_l^T s, \qquad (I - T_x^T)\, s = \frac{dL}{dx} $$

    A deep equilibrium layer is one, and so is every iteration that is run to its limit. T need not
    contract: the search is Newton's, and the adjoint system is solved by GMRES, not by a series.

    Args:
        T: function of x and l, both tensors or trees of tensors, whose result is a tree like x.
        x0: where the first search starts.
        solve: a function (x0, l) -> x that finds the fixed point in a way of your own, such as
            iterating T. Default: as in `root`.
        rtol, method, preconditioner, max_iterations, warm_start, estimate_error, generator,
            progress: as in `root`.

    Returns:
        A function of l as that of `argmin`.

    Cost, Raises: as `root`. One backward step instead of the system (a "phantom" gradient) would
        take one product, and give another number.

    References: Bai, Kolter & Koltun 2019, arXiv:1909.01377.

    >>> import torch
    >>> half = fixed_point(lambda x, l: x / 2 + l, torch.zeros(2))
    >>> l = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> half(l).sum().backward()
    >>> l.grad
    tensor([2., 2.])
    """
    flags = {"warm_start": warm_start, "estimate_error": estimate_error}
    system = system_of(
        T, solve, method, preconditioner, rtol, max_iterations, generator, progress, **flags
    )
    return SolutionOf(FixedPoint(T), x0, solve, system, **flags)
