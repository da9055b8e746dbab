# SPDX-License-Identifier: Apache-2.0
"""`root`: the solution of equations as a differentiable function of their parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hesse.apps.implicit.arguments import system_of
from hesse.apps.implicit.equation import Root, Spaces
from hesse.apps.implicit.implicit_function import ImplicitFunction, Solve, refused
from hesse.apps.implicit.newton import find_root
from hesse.apps.implicit.report import ImplicitReport
from hesse.boundary import public
from hesse.errors import Status
from hesse.krylov.auto import Auto
from hesse.krylov.method import Method
from hesse.krylov.solve import Name
from hesse.operators.algebra import LinearOperator
from hesse.vectors.space import Tree


class SolutionOf(ImplicitFunction):
    """l -> x with F(x, l) = 0; see `root` and `fixed_point`."""

    def search(self, spaces: Spaces, x0: Tensor, l: Tensor) -> tuple[Tensor, ImplicitReport]:
        found = find_root(
            lambda x: self.equation.residual_at(spaces, x, l),
            lambda x: self.equation.jacobian(spaces, x, l),
            x0,
            spaces.x,
        )
        if found.status is not Status.CONVERGED:
            raise refused(found.status)
        return found.x, ImplicitReport(found.residual, found.status)


@public("hesse.apps.root(F, x0)")
def root(
    F: Callable[[Any, Any], Any],
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
    r"""The solution x(l) of F(x, l) = 0, as a function of l that can be differentiated.

    $$ F(x(l), l) = 0, \qquad \frac{dL}{dl} = -F_l^T s, \quad F_x^T s = \frac{dL}{dx} $$

    Args:
        F: function of x and l, both tensors or trees of tensors, whose result is a tree like x.
        x0: where the first search starts.
        solve: a function (x0, l) -> x that solves F(x, l) = 0 in a way of your own. Default: an
            inexact Newton method with GMRES, to nearly the precision of x.
        rtol, method, preconditioner, max_iterations, warm_start, estimate_error, generator,
            progress: as in `argmin`. The adjoint system is solved by GMRES, or by conjugate
            gradients or MINRES where the Jacobian is known to be symmetric; the bar is its own.

    Returns:
        A function of l as that of `argmin`.

    Cost: of a backward pass, an adjoint system, one product with F_x' an iteration (2/3 of a
        gradient of F), and one with F_l'. Normal equations would square the condition.

    Raises:
        HesseError: F(x, l) is not like x; no solution was found from x0; in a backward pass, a
            singular Jacobian.

    References: Blondel, Berthet, Cuturi et al. 2022, arXiv:2105.15183.

    >>> import torch
    >>> cube_root = root(lambda x, l: x**3 - l, torch.ones((), dtype=torch.float64))
    >>> l = torch.tensor(8.0, dtype=torch.float64, requires_grad=True)
    >>> cube_root(l).backward()
    >>> l.grad * 12
    tensor(1., dtype=torch.float64)
    """
    flags = {"warm_start": warm_start, "estimate_error": estimate_error}
    system = system_of(
        F, solve, method, preconditioner, rtol, max_iterations, generator, progress, **flags
    )
    return SolutionOf(Root(F), x0, solve, system, **flags)
