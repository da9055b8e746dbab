"""The exact products in float64, by plain double backward: nothing of Hesse is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from benchmarks.case import Case
from benchmarks.problem import Problem

COLUMNS = (0, -1)
"""The columns of a block that are checked."""


@dataclass(frozen=True)
class Oracle:
    """Exact products by quantity: the columns 1 and 8 of the block, or one column."""

    exact: dict[str, Tensor]

    @staticmethod
    def of(case: Case) -> Oracle:
        """The gradient, products of two directions, and J v and J'u."""
        double, directions = case.problem.double(), case.block[:, COLUMNS].double().T
        # Outside of `AllDouble`: its shape takes the outputs of the float32 model.
        cotangent = None if double.parts is None else case.cotangent.double()
        with sdpa_kernel(SDPBackend.MATH), AllDouble():
            gradient, product = hessian(double)
            exact = {
                "gradient": gradient.unsqueeze(1),
                "hessian": torch.stack([product(v) for v in directions], dim=1),
            }
            if cotangent is not None:
                product = gauss_newton(double)
                exact["ggn"] = torch.stack([product(v) for v in directions], dim=1)
                exact["fisher"] = exact["ggn"][:, :1]  # all losses here have natural parameters
                exact["empirical"] = empirical_fisher(double)(directions[0]).unsqueeze(1)
                push, pull = jacobian(double)
                exact["jacobian"] = push(directions[0]).reshape(-1, 1)
                exact["adjoint"] = pull(cotangent).unsqueeze(1)
        return Oracle({quantity: columns.detach() for quantity, columns in exact.items()})

    def error(self, quantity: str, result: Tensor) -> float:
        """|result - exact| / |exact| for a vector, or a block in the columns that are checked."""
        exact = self.exact[quantity]
        exact, result = (exact, result[:, COLUMNS]) if result.ndim == 2 else (exact[:, 0], result)
        return float((result.double() - exact).norm() / exact.norm())


class AllDouble(TorchFunctionMode):
    """Casts to float32 inside a model, as in an RMSNorm, are casts to float64."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        kwargs = {
            key: torch.float64 if arg is torch.float32 else arg
            for key, arg in (kwargs or {}).items()
        }
        return func(*args, **kwargs)


def hessian(problem: Problem) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The gradient and v -> H v, for flat vectors."""
    leaves = _leaves(problem)
    value = problem.f(dict(zip(problem.params, leaves, strict=True)))
    gradient = _flat(torch.autograd.grad(value, leaves, create_graph=True))
    return gradient, lambda v: _flat(_pull_back(gradient, leaves, v))


def gauss_newton(problem: Problem) -> Callable[[Tensor], Tensor]:
    """v -> J' H_L J v, for flat vectors."""
    parts = problem.parts
    assert parts is not None
    free = parts.outputs(problem.params).detach().requires_grad_()
    slope = torch.autograd.grad(parts.loss(free, parts.targets), free, create_graph=True)[0]
    push, pull = jacobian(problem)
    return lambda v: pull(_pull_back(slope, [free], push(v))[0])


def empirical_fisher(problem: Problem) -> Callable[[Tensor], Tensor]:
    """v -> sum of omega g (g'v) over rows, with omega g the slope of the loss in the outputs."""
    parts = problem.parts
    assert parts is not None
    free = parts.outputs(problem.params).detach().requires_grad_()
    (slope,) = torch.autograd.grad(parts.loss(free, parts.targets), free)
    push, pull = jacobian(problem)
    # What one term of the mean weighs: tokens or examples, images, or all entries.
    counts = {"CrossEntropyLoss": free[..., 0].numel(), "TokenCrossEntropy": free[..., 0].numel()}
    counts["ReconstructionLoss"] = len(free)
    count = counts.get(type(parts.loss).__name__, free.numel())
    return lambda v: pull(count * slope * (slope * push(v)).sum(-1, keepdim=True))


def jacobian(problem: Problem) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """v -> J v of the outputs' shape, and back u -> J'u; J v is the derivative of J'u in u."""
    parts, leaves = problem.parts, _leaves(problem)
    assert parts is not None
    z = parts.outputs(dict(zip(problem.params, leaves, strict=True)))
    u = torch.ones_like(z, requires_grad=True)
    transposed = _flat(torch.autograd.grad(z, leaves, u, create_graph=True))
    return (
        lambda v: _pull_back(transposed, [u], v)[0],
        lambda u: _flat(_pull_back(z, leaves, u)),
    )


def _leaves(problem: Problem) -> list[Tensor]:
    return [leaf.requires_grad_() for leaf in problem.params.values()]


def _pull_back(output: Tensor, leaves: list[Tensor], v: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(output, leaves, v, retain_graph=True, materialize_grads=True))


def _flat(parts: Any) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])
