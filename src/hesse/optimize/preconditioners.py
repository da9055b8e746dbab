# SPDX-License-Identifier: Apache-2.0
"""Preconditioners of Hessian-free optimisation from a sketch, a diagonal or a user's function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from hesse.errors import OperatorError
from hesse.krylov.nystrom import eigenpairs_of_sketch, sketch
from hesse.krylov.preconditioners.deflation import deflation
from hesse.krylov.preconditioners.jacobi import absolute_diagonal
from hesse.operators.algebra import LinearOperator
from hesse.operators.diagonal import DiagonalOperator
from hesse.optimize.factory import Factory, damped_inverse, made
from hesse.vectors.space import Space, Tree

NAMES = ("ekfac", "kfac", "nystrom", "diagonal", "none")
_RANK = 20  # of the sketch
_PROBES = 8  # for the diagonal


class Preconditioner(Protocol):
    """lambda -> an approximation of the inverse of the curvature + lambda I."""

    products: int
    """What `refresh` takes."""

    def refresh(
        self, risk: Any, params: Tree, curvature: Callable[[], LinearOperator], seed: int
    ) -> None:
        """Make it at a point."""
        ...

    @property
    def is_empty(self) -> bool:
        """Whether it has not been made yet."""
        ...

    def forget(self) -> None:
        """Be empty."""
        ...

    def __call__(self, damping: float) -> LinearOperator:
        """The approximate inverse."""
        ...


class NystromPreconditioner:
    """The large positive eigenvalues of the curvature, from a random sketch."""

    products = _RANK

    def __init__(self, space: Space) -> None:
        self._space = space
        self.products = min(_RANK, space.n)
        self._pairs: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it has not been made yet."""
        return self._pairs is None

    def forget(self) -> None:
        """Be empty."""
        self._pairs = None

    def refresh(
        self, risk: Any, params: Tree, curvature: Callable[[], LinearOperator], seed: int
    ) -> None:
        """Sketch the curvature."""
        generator = torch.Generator().manual_seed(seed)
        Omega, Y = sketch(curvature(), self.products, generator)
        # What is negative, as in a Hessian, is left to the damping.
        self._pairs = eigenpairs_of_sketch(self._space, Omega, Y, may_be_indefinite=True)

    def __call__(self, damping: float) -> LinearOperator:
        """(lambda_r + damping) U (Lambda + damping I)^-1 U' + I - U U'."""
        assert self._pairs is not None
        U, values = self._pairs
        return deflation(self._space, U, values + damping, float(values[-1]) + damping)


class StructuredPreconditioner:
    """The inverse that the structure of an operator gives.

    Args:
        space: of the parameters.
        factory: (risk, params) -> the operator; None for the estimated diagonal of the curvature.
    """

    def __init__(self, space: Space, factory: Factory | None) -> None:
        self._space, self._factory = space, factory
        self.products = _PROBES if factory is None else 0
        self._K: LinearOperator | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it has not been made yet."""
        return self._K is None

    def forget(self) -> None:
        """Be empty."""
        self._K = None

    def refresh(
        self, risk: Any, params: Tree, curvature: Callable[[], LinearOperator], seed: int
    ) -> None:
        """Make the operator at a point."""
        if self._factory is not None:
            self._K = made(self._factory, risk, self._space, params, "preconditioner")
            return
        generator = torch.Generator().manual_seed(seed)
        size, _ = absolute_diagonal(curvature(), _PROBES, generator)
        self._K = DiagonalOperator(self._space, size)

    def __call__(self, damping: float) -> LinearOperator:
        """(K + damping I)^-1."""
        assert self._K is not None
        inverse = damped_inverse(self._K, damping)
        if inverse is None:
            raise OperatorError(
                expected="preconditioner(risk, params) to approximate the curvature by an operator "
                "K whose structure gives the inverse of K + damping I",
                got=str(self._K),
                remedy="Return a diagonal, low-rank, K-FAC, EK-FAC or dense operator.",
            )
        return inverse
