# SPDX-License-Identifier: Apache-2.0
r"""The implicit function theorem as two functions of autograd, each of which gives the other.

The solution x(l) of F(x, l) = 0, and the solution y of a system with its Jacobian J = dF/dx:

$$ dx = -J^{-1} F_l\, dl, \qquad dy = J^{-T} \bigl(db - (dJ)^T y\bigr) \text{ for } J^T y = b $$

The derivative of the first takes the second, and that of the second the second again: there are
derivatives of every order. `vmap` goes through the members of a batch one by one; right-hand sides
that share one J are solved for together.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from hesse.apps.implicit.equation import (
    Equation,
    Spaces,
    bilinear_gradient,
    bilinear_push,
    pull_to_parameters,
    push_parameters,
)


class Solver(Protocol):
    """What finds solutions: see `implicit_function`."""

    @property
    def equation(self) -> Equation:
        """F."""
        ...

    @property
    def spaces(self) -> Spaces:
        """Of x and l."""
        ...

    def find(self, l: Tensor) -> Tensor:
        """x with F(x, l) = 0, a new tensor."""
        ...

    def solve_system(
        self, x: Tensor, l: Tensor, b: Tensor, *, transposed: bool, order: int
    ) -> Tensor:
        """y with J y = b, or J' y = b; b a vector or a block."""
        ...


class ImplicitRoot(torch.autograd.Function):
    """l -> x with F(x, l) = 0."""

    @staticmethod
    def forward(solver: Solver, l: Tensor) -> Tensor:  # pyright: ignore
        """x, found without a graph."""
        return solver.find(l.detach())

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        """Keep the point."""
        ctx.solver, l = inputs
        ctx.save_for_backward(output, l)
        ctx.save_for_forward(output, l)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # pyright: ignore
        """-F_l' s with J' s = g."""
        x, l = ctx.saved_tensors
        solver: Solver = ctx.solver
        s = LinearSystem.apply(solver, True, 0, x, l, g)
        return None, -pull_to_parameters(solver.equation, solver.spaces, x, l, s)

    @staticmethod
    def jvp(ctx: Any, _: Any, dl: Tensor) -> Tensor:  # pyright: ignore
        """-J^-1 F_l dl, in forward mode."""
        x, l = ctx.saved_tensors
        solver: Solver = ctx.solver
        b = push_parameters(solver.equation, solver.spaces, x, l, dl)
        return -LinearSystem.apply(solver, False, 0, x, l, b)

    @staticmethod
    def vmap(_: Any, in_dims: Any, solver: Solver, l: Tensor) -> tuple[Tensor, int]:  # pyright: ignore
        """One solution after the other."""
        members = l.movedim(in_dims[1], 0)
        return torch.stack([ImplicitRoot.apply(solver, member) for member in members]), 0


class LinearSystem(torch.autograd.Function):
    """b -> y with J y = b or J' y = b, where J = dF/dx at (x, l); b a vector or a block."""

    @staticmethod
    def forward(  # pyright: ignore
        solver: Solver, transposed: bool, order: int, x: Tensor, l: Tensor, b: Tensor
    ) -> Tensor:
        """y, found without a graph."""
        point = x.detach(), l.detach(), b.detach()
        return solver.solve_system(*point, transposed=transposed, order=order)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        """Keep the point and the solution."""
        ctx.solver, ctx.transposed, ctx.order, x, l, _ = inputs
        ctx.save_for_backward(x, l, output)
        ctx.save_for_forward(x, l, output)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Any:  # pyright: ignore
        """t = J^-1 u (or J^-T u) for b, and the gradient of -y' J t (or -t' J y) for x and l."""
        x, l, y = ctx.saved_tensors
        solver: Solver = ctx.solver
        t = LinearSystem.apply(solver, not ctx.transposed, ctx.order + 1, x, l, u)
        left, right = (y, t) if ctx.transposed else (t, y)
        of_x, of_l = bilinear_gradient(solver.equation, solver.spaces, x, l, left, right)
        return None, None, None, -of_x, -of_l, t

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:  # pyright: ignore
        """J^-1 (db - (dJ) y), or J^-T (db - (dJ)' y)."""
        (x, l, y), (dx, dl, db) = ctx.saved_tensors, tangents[3:]
        solver: Solver = ctx.solver
        moved = [torch.zeros_like(t) if dt is None else dt for t, dt in ((x, dx), (l, dl))]
        b = -bilinear_push(
            *(solver.equation, solver.spaces, (x, l), (moved[0], moved[1]), y),
            transposed=ctx.transposed,
        )
        b = b if db is None else b + db
        return LinearSystem.apply(solver, ctx.transposed, ctx.order + 1, x, l, b)

    @staticmethod
    def vmap(  # pyright: ignore
        info: Any, in_dims: Any, solver: Solver, transposed: bool, order: int, *tensors: Tensor
    ) -> tuple[Tensor, int]:
        """All right-hand sides of one J together, or one system after the other."""
        (x, l, b), (x_dim, l_dim, b_dim) = tensors, in_dims[3:]
        settings = (solver, transposed, order)
        if x_dim is None and l_dim is None and b.ndim == 2:
            return LinearSystem.apply(*settings, x, l, b.movedim(b_dim, 1)), 1
        rows = [
            [tensor] * info.batch_size if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip(tensors, in_dims[3:], strict=True)
        ]
        members = zip(*rows, strict=True)
        return torch.stack([LinearSystem.apply(*settings, *member) for member in members]), 0
