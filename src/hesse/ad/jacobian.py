# SPDX-License-Identifier: Apache-2.0
"""Products with the Jacobian J = dz/dx of the outputs of a model, and with J', by retained graphs.

J'u is a backward pass through the graph of z. J v is the derivative of J'u, which is linear in u,
with respect to u: a backward pass through the graph of that backward pass. Forward mode, which
would compute z anew for every v, is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor

from hesse.ad.double_backward import derivative, differentiating, gradient_of, independent
from hesse.ad.graph_nodes import UndifferentiableError, custom_function, graph_nodes
from hesse.ad.variables import Leaves
from hesse.errors import DerivativeError, FunctionError, HesseError
from hesse.tracing.graph import UntraceableError
from hesse.vectors.inner_products import dot, norm
from hesse.vectors.rows import joined


class JacobianGraph:
    """J and J' at x, by the graphs of z and of J'u.

    Args:
        z: the outputs, one tensor or several, with their graph.
        x: the leaves that they depend on.
        weights: u with which the graph of J'u is made; default ones. Any u serves, since J'u is
            linear in it, but for these J'u is known.
    """

    def __init__(
        self, z: list[Tensor], x: list[Tensor], weights: Sequence[Tensor] | None = None
    ) -> None:
        self.z, self._x, self._weights = z, x, weights
        self._varying = [part for part in z if part.requires_grad]
        if not self._varying:
            raise independent()

    def push_forward(self, v: Leaves) -> list[Tensor]:
        """J v, shaped like the outputs; zero where these do not depend on x."""
        with differentiating(), explained("outputs"):
            pushed = iter(_derivative_in_weights(*self._transposed, v))
        return [next(pushed) if z.requires_grad else torch.zeros_like(z) for z in self.z]

    def pull_back(self, u: Leaves) -> list[Tensor]:
        """J' u, one tensor a leaf of x."""
        wanted, found = ([part.shape for part in parts] for parts in (u, self.z))
        if found != wanted:
            raise other_outputs(_shapes(found), _shapes(wanted))
        weights = [part for part, z in zip(u, self.z, strict=True) if z.requires_grad]
        with differentiating():
            return self._pull_back(weights)

    @property
    def pulled_back(self) -> list[Tensor]:
        """J'u for the weights; by the graph of J'u, which products need, unless it has none."""
        try:
            return [part.detach() for part in self._transposed[1]]
        except DerivativeError:  # z can be differentiated once
            assert self._weights is not None
            return self.pull_back(self._weights)

    def _pull_back(self, u: Leaves) -> list[Tensor]:
        return derivative(self._varying, self._x, list(u), retain_graph=True)

    @property
    def node_names(self) -> list[str]:
        """The names of the nodes of the graph of z."""
        return [node.name() for z in self._varying for node in graph_nodes(z)]

    @property
    def custom_function(self) -> str | None:
        """A user's `autograd.Function` on the way to z; `push_forward` checks it."""
        return self._custom_function

    @cached_property
    def _custom_function(self) -> str | None:  # a walk through the graph
        try:
            return self._find_custom_function()
        except UndifferentiableError:  # no matter for J'u; `push_forward` says so
            return "that is marked once_differentiable"

    def _find_custom_function(self) -> str | None:
        return next(filter(None, map(custom_function, self._varying)), None)

    @property
    def retained(self) -> list[Tensor]:
        """The outputs and J'u, with their graphs."""
        try:
            back = self._transposed[1]
        except DerivativeError:  # there are products with J' alone
            back = []
        return [*self._varying, *(part for part in back if part.requires_grad)]

    @cached_property
    def _transposed(self) -> tuple[list[Tensor], list[Tensor]]:
        """u, and J'u as a graph in u."""
        with differentiating(), explained("outputs"):
            u = [part.requires_grad_() for part in self._start()]
            back = gradient_of(self._varying, self._x, u, create_graph=True)
            self._check_custom_function(u, back)
        return u, back

    def _start(self) -> list[Tensor]:
        """Weights of the outputs that vary, as tensors that nobody else has."""
        if self._weights is None:
            return [torch.ones_like(z) for z in self._varying]
        pairs = zip(self._weights, self.z, strict=True)
        return [part.detach() for part, z in pairs if z.requires_grad]

    def _check_custom_function(self, u: list[Tensor], back: list[Tensor]) -> None:
        """Raise unless <J v, w> = <v, J'w>, where a backward pass may be no program of torch's."""
        try:
            name = self._find_custom_function()
        except UndifferentiableError as error:
            raise undifferentiable("outputs", str(error)) from error
        if name is None:
            return
        v, w = random_like(self._x), random_like(self._varying)
        pushed, pulled = joined(_derivative_in_weights(u, back, v)), joined(self._pull_back(w))
        defect = abs(dot(pushed, joined(w)) - dot(joined(v), pulled))
        # Entries of v and w have variance one: rounding is some eps of these norms.
        if defect > torch.finfo(pushed.dtype).eps ** 0.5 * (norm(pushed) + norm(pulled)):
            raise undifferentiable(
                "outputs", f"the backward pass of {name} cannot be differentiated"
            )


def _shapes(shapes: Sequence[torch.Size]) -> str:
    """Shapes in words."""
    return ", ".join(str(tuple(shape)) for shape in shapes)


def other_outputs(found: object, wanted: object) -> FunctionError:
    """The error for a function whose outputs do not have the shapes that they had before."""
    return FunctionError(
        expected=f"outputs of the same shapes at every evaluation: {wanted}",
        got=f"{found}",
        remedy="Give a function whose outputs have shapes that depend on nothing but the shapes of "
        "its argument: mask entries instead of leaving them out.",
    )


def _derivative_in_weights(u: Leaves, back: Leaves, v: Leaves) -> list[Tensor]:
    """J v, as the derivative of the graph of J'u with respect to u."""
    pairs = [(b, w) for b, w in zip(back, v, strict=True) if b.requires_grad]
    if not pairs:
        return [torch.zeros_like(part) for part in u]
    graph, directions = zip(*pairs, strict=True)
    return derivative(graph, u, directions, retain_graph=True)


def random_like(parts: Leaves) -> list[Tensor]:
    """Gaussian tensors of these shapes, always the same."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(part.shape, generator=generator).to(part) for part in parts]


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Within it, torch's word that a derivative cannot be differentiated names the way out."""
    try:
        yield
    except (HesseError, UntraceableError, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:
        raise undifferentiable(what, str(error).strip().splitlines()[0]) from error


def undifferentiable(what: str, reason: str) -> DerivativeError:
    """The error for outputs or a loss that cannot be differentiated twice, and why."""
    remedy = "Put other operations of torch in the place of that one"
    if re.search("sparse", reason):
        remedy += " (torch.zeros(n, m).index_put((i, j), values), or sums by index_add)"
    return DerivativeError(
        expected=f"{what} whose backward pass is made of differentiable operations",
        got=reason,
        remedy=f"{remedy}; or use hesse.hessian_operator(risk, params), which takes differences of "
        "gradients where it must.",
    )
