# SPDX-License-Identifier: Apache-2.0
"""`argmin`: the minimiser of a function as a differentiable function of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hesse.apps.implicit.adjoint import not_a_minimum
from hesse.apps.implicit.arguments import system_of
from hesse.apps.implicit.equation import Minimum, Spaces
from hesse.apps.implicit.implicit_function import ImplicitFunction, Solve, refused
from hesse.apps.implicit.report import ImplicitReport
from hesse.boundary import public, warn
from hesse.errors import Status
from hesse.krylov.auto import Auto
from hesse.krylov.eigsh import eigsh
from hesse.krylov.method import Method
from hesse.krylov.solve import Name
from hesse.operators.algebra import LinearOperator
from hesse.optimize.minimize import minimize
from hesse.vectors.space import Tree

# A look for negative curvature at a minimum that the user's function found.
_LOOK_PRODUCTS = 20

_USABLE = (Status.CONVERGED, Status.STAGNATED, Status.MAX_ITERATIONS)


class ArgMin(ImplicitFunction):
    """l -> the minimiser of f(., l); see `argmin`."""

    def search(self, spaces: Spaces, x0: Tensor, l: Tensor) -> tuple[Tensor, ImplicitReport]:
        # Newton's last step ends far below the tolerance, which derivatives profit from.
        f, progress = self.equation.at(spaces, l), self.system.progress
        result = minimize(f, spaces.x.unflatten(x0), "newton-cg", progress=progress)
        if result.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        if result.status not in _USABLE:
            raise refused(result.status)
        if not result.success:
            warn(f"The inner minimisation did not converge. {result.message}")
        x = spaces.x.flatten(result.x).clone()
        residual = spaces.x.norm(spaces.x.flatten(result.jac))
        return x, ImplicitReport(residual, result.status, result.min_curvature)

    def check_found(self, spaces: Spaces, x: Tensor, l: Tensor) -> float | None:
        H = self.equation.jacobian(spaces, x, l)
        products = min(H.domain.n, _LOOK_PRODUCTS) + 2
        pairs = eigsh(
            H,
            1,
            "SA",
            rtol=0.1,
            max_products=products,
            generator=torch.Generator().manual_seed(0),
        )
        if not len(pairs.values):
            return None
        lowest = float(pairs.values[0])  # a Ritz value, which is at least the lowest eigenvalue
        if lowest < -(torch.finfo(H.dtype).eps ** 0.5) * _typical_eigenvalue(H):
            raise not_a_minimum(lowest)
        return lowest


def _typical_eigenvalue(H: LinearOperator) -> float:
    """|H z| / |z| for random z, whose square averages to the mean of the squared eigenvalues."""
    z = H.domain.gaussian(torch.Generator().manual_seed(1))
    return H.domain.norm(H._matvec(z)) / H.domain.norm(z)


@public("hesse.apps.argmin(f, x0)")
def argmin(
    f: Callable[[Any, Any], Tensor],
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
) -> ArgMin:
    r"""The minimiser x(l) of f(x, l), as a function of l that can be differentiated.

    $$ x(l) = \arg\min_x f(x, l), \qquad
       \frac{dL}{dl} = -f_{lx}\, s, \quad f_{xx}\, s = \frac{dL}{dx} $$

    The derivative is that of the minimiser, by the implicit function theorem, not of the steps that
    led to it: it needs no memory for them, and none depends on x0, whose gradient is zero. It holds
    at a minimum; at any other point it is the derivative of something else. So a point of negative
    curvature is refused, and `report` tells both residuals.

    Args:
        f: scalar function of x and l, both tensors or trees of tensors. It may close over data; a
            tensor that it closes over gets no gradient.
        x0: where the first search starts.
        solve: a function (x0, l) -> x that minimises f(., l) in a way of your own. Default:
            `hesse.minimize`, to its default tolerance. A point that is far from a minimum warns.
        rtol: of the adjoint system, |f_xx s - g| <= rtol |g|.
        method, preconditioner: of the adjoint system, see `hesse.solve`.
        max_iterations: of the adjoint system. A limit truncates it in silence, as in iMAML; without
            one a system that was not solved warns.
        warm_start: search from the last x, and solve from the last s. With several minima the last
            x decides which one is found.
        estimate_error: fill in `report.x_error` and `report.gradient_error`, by two loose systems
            more.
        generator: of preconditioners that sample.
        progress: show bars, of the search and of systems. For a checkpoint of a long search give
            solve=, a function that calls `hesse.minimize(..., checkpoint=)`.

    Returns:
        A function of l. Its value is a tree like x0. It has derivatives of every order in l, and
        works under `torch.vmap`, one member after the other. Attributes: `report`, an
        `ImplicitReport` of the last call.

    Cost: of a call, the minimisation; with solve= a gradient and at most 23 products to look for
        negative curvature. Of a backward pass, an adjoint system (one product an iteration), and a
        mixed product of three gradients.

    Raises:
        HesseError: of the call: f is not a scalar function of x, has no minimum, or the solution
            has negative curvature. In a backward pass: the Hessian is indefinite or singular.

    References: Krantz & Parks 2013, The Implicit Function Theorem; Rajeswaran, Finn, Kakade &
        Levine 2019, arXiv:1909.04630 (iMAML); Pedregosa 2016, arXiv:1602.02355 (both tolerances).

    >>> x = argmin(lambda x, l: ((x - l**2) ** 2).sum(), torch.zeros(2))
    >>> l = torch.tensor([1.0, 3.0], requires_grad=True)
    >>> x(l).sum().backward()
    >>> l.grad
    tensor([2., 6.])
    """
    flags = {"warm_start": warm_start, "estimate_error": estimate_error}
    system = system_of(
        f, solve, method, preconditioner, rtol, max_iterations, generator, progress, **flags
    )
    return ArgMin(Minimum(f), x0, solve, system, **flags)
