# SPDX-License-Identifier: Apache-2.0
r"""The precision matrix of a posterior, P = c A + D, and what is computed with it.

Where the structure of A gives an inverse everything is exact. Elsewhere systems are solved by block
conjugate gradients, and draws are solutions of perturbed systems,

$$ P x = \sqrt{c}\, R z_1 + D^{1/2} z_2, \qquad A = R R^T, $$

whose covariance is P^-1 (c A + D) P^-1 = P^-1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hesse.apps.uncertainty.chosen import Chosen
from hesse.apps.uncertainty.structures import Curvature
from hesse.boundary import warn
from hesse.errors import OperatorError, Status
from hesse.estimators.estimate import Estimate
from hesse.estimators.exact import ExactValue, exact_estimate
from hesse.estimators.logdet import logdet
from hesse.estimators.sample_normal import sample_normal
from hesse.krylov.solve import solve
from hesse.operators.algebra import LinearOperator
from hesse.operators.dense import DenseOperator
from hesse.operators.diagonal import DiagonalOperator, IdentityOperator
from hesse.vectors.random import drawn_seed
from hesse.vectors.rows import stacked

GAMMA_DRAWS = 32
"""Draws from N(0, A) for the number of parameters that the data determine."""

# Bytes for the vectors of a block of systems, some ten for each column.
_BYTES = 1 << 28
_VECTORS = 10


@dataclass
class Work:
    """Products so far, and the seed of the random numbers that all P with the same A share."""

    products: int = 0
    seed: int | None = None

    @property
    def saved_seed(self) -> Tensor | None:
        """The seed in a form that a checkpoint holds to the last digit."""
        return None if self.seed is None else torch.tensor(self.seed)

    def resume(self, products: int, seed: Tensor | None) -> None:
        """Go on where a run was that was saved."""
        self.products, self.seed = products, None if seed is None else int(seed)

    def numbers(self, generator: torch.Generator | None) -> torch.Generator:
        """A generator that begins with the same numbers in every call."""
        if self.seed is None:
            self.seed = drawn_seed(generator)
        return torch.Generator().manual_seed(self.seed)


Sums = Callable[[Tensor], Tensor]
"""Of numbers (s,) of the parameters over groups of them, (g,)."""


@dataclass(frozen=True)
class Solver:
    """How systems with P are solved."""

    rtol: float
    generator: torch.Generator | None
    progress: bool


@dataclass(frozen=True)
class Precision(ABC):
    """P = c A + D.

    Args:
        curvature: A.
        chosen: the parameters that it is of.
        scale: c.
        delta: the diagonal of D, (s,), in float64.
    """

    curvature: Curvature
    chosen: Chosen
    scale: float
    delta: Tensor
    solver: Solver
    work: Work
    kept: dict[int, Tensor] = field(default_factory=dict, repr=False)
    """Draws by their number."""

    @staticmethod
    def of(
        curvature: Curvature,
        chosen: Chosen,
        scale: float,
        delta: Tensor,
        solver: Solver,
        work: Work,
    ) -> Precision:
        """The exact one where P has a cheap inverse.

        Raises:
            OperatorError: P is not positive definite.
        """
        args = curvature, chosen, scale, delta, solver, work
        exact = ExactPrecision(*args)
        if exact.inverse is not None:
            exact.check()
            return exact
        if isinstance(curvature.A, DenseOperator) or curvature.A.is_structured:
            raise exact.without_inverse()
        return IterativePrecision(*args)

    @property
    def A(self) -> LinearOperator:
        """The curvature of the data part of the risk."""
        return self.curvature.A

    @cached_property
    def P(self) -> LinearOperator:
        """The operator."""
        return self.scale * self.A + self._diagonal(self.delta)

    @property
    def is_uniform(self) -> bool:
        """Whether D is a multiple of I."""
        return bool((self.delta == self.delta[0]).all())

    def _diagonal(self, d: Tensor) -> LinearOperator:
        space = self.A.domain
        if self.is_uniform:
            return float(d[0]) * IdentityOperator(space)
        return DiagonalOperator(space, d.to(space.dtype))

    @abstractmethod
    def log_ratio(self, **options: Any) -> Estimate:
        """log det P - log det D; the options are those of `logdet`."""

    @abstractmethod
    def solved(self, B: Tensor) -> Tensor:
        """P^-1 B for a block (s, k)."""

    @abstractmethod
    def effective(self, sums: Sums) -> Tensor:
        """`sums` of the diagonal of c A P^-1, as columns whose mean they are, (g, k)."""

    def draws(self, count: int, *, fresh: bool = False) -> Tensor:
        """(s, count) from N(0, P^-1): the same in every call, unless fresh ones are wanted."""
        if fresh:
            return self._drawn(count, self.solver.generator)
        if count not in self.kept:
            self.kept[count] = self._drawn(count, self.work.numbers(self.solver.generator))
        return self.kept[count]

    @abstractmethod
    def _drawn(self, count: int, generator: torch.Generator | None) -> Tensor:
        """(s, count) from N(0, P^-1)."""

    def _normal(self, count: int, generator: torch.Generator | None) -> Tensor:
        """(s, count) standard normal numbers."""
        draws = (self.A.domain.gaussian(generator) for _ in range(count))
        return stacked(count, draws).T.contiguous()


@dataclass(frozen=True)
class ExactPrecision(Precision):
    """P with an inverse."""

    @cached_property
    def inverse(self) -> LinearOperator | None:
        """P^-1 as an operator, by eigenvalues where these are known."""
        by_eigenvalues = self.P._function(torch.reciprocal)
        return self.P._inverse() if by_eigenvalues is None else by_eigenvalues

    def check(self) -> None:
        """Raise unless P is positive definite."""
        negative = self.P._num_negative()
        if negative:
            raise indefinite(f"{negative} negative eigenvalues")

    def without_inverse(self) -> OperatorError:
        """The error for a matrix whose structure gives no inverse."""
        if not self.is_uniform and self.A.is_structured:
            return OperatorError(
                expected="prior precisions that are equal within each block of the structure",
                got="different ones for a weight and its bias",
                remedy="Group the parameters of a layer, by groups=['0.*', '2.*'].",
            )
        return OperatorError(
            expected=f"a precision matrix that can be inverted in {self.A.dtype}",
            got=f"prior precisions down to {float(self.delta.min()):.3g}",
            remedy="Raise the prior precision, or use a float64 model.",
        )

    def log_ratio(self, **options: Any) -> Estimate:
        known = self.P._logdet()
        assert known is not None
        value = known[1] - float(self.delta.log().sum())
        return exact_estimate(ExactValue(value, 0.0), 0)

    def solved(self, B: Tensor) -> Tensor:
        assert self.inverse is not None
        return self.inverse._matmat(B)

    def effective(self, sums: Sums) -> Tensor:
        assert self.inverse is not None
        d = self.inverse._diagonal()
        d = self.inverse.to_dense().diagonal() if d is None else d
        return sums(1.0 - self.delta * d.double())[:, None]

    def _drawn(self, count: int, generator: torch.Generator | None) -> Tensor:
        root = self.P._function(torch.rsqrt)
        if root is not None:
            return root._matmat(self._normal(count, generator))
        if self.P.is_structured:
            return sample_normal(self.P, count, generator=generator).value
        L = torch.linalg.cholesky(self.P.to_dense())
        return torch.linalg.solve_triangular(L.T, self._normal(count, generator), upper=True)


@dataclass(frozen=True)
class IterativePrecision(Precision):
    """P by products alone."""

    def log_ratio(self, **options: Any) -> Estimate:
        """log det of D^(-1/2) P D^(-1/2), whose eigenvalues are 1 where there are no data."""
        if self.is_uniform:
            scaled = (self.scale / float(self.delta[0])) * self.A
        else:
            root = DiagonalOperator(self.A.domain, self.delta.rsqrt().to(self.A.dtype))
            scaled = self.scale * (root @ self.A @ root)
        P = scaled + IdentityOperator(self.A.domain)
        generator, progress = self.solver.generator, self.solver.progress
        estimate = logdet(P, **options, generator=generator, progress=progress)
        self.work.products += estimate.products
        return estimate

    def solved(self, B: Tensor) -> Tensor:
        solution = solve(
            *(self.P, B, "block-cg"), rtol=self.solver.rtol, progress=self.solver.progress
        )
        self.work.products += solution.products
        if solution.status is Status.NEGATIVE_CURVATURE or solution.direction is not None:
            raise indefinite("a direction of negative curvature")
        if not solution.converged:
            warn(f"The posterior is not exact. {solution.status.value}")
        return solution.x

    def effective(self, sums: Sums) -> Tensor:
        """Of r * P^-1 r for draws r from N(0, c A)."""
        generator, columns = self.work.numbers(self.solver.generator), []
        for count in self._chunks(GAMMA_DRAWS):
            r = math.sqrt(self.scale) * self._from_A(count, generator)
            columns += [sums(column) for column in (r * self.solved(r)).T]
        return torch.stack(columns, 1)

    def _drawn(self, count: int, generator: torch.Generator | None) -> Tensor:
        if self.curvature.root is None:
            found = sample_normal(self.P, count, generator=generator)
            self.work.products += found.products
            return found.value
        return torch.cat([self._perturbed(k, generator) for k in self._chunks(count)], 1)

    def _perturbed(self, count: int, generator: torch.Generator | None) -> Tensor:
        """(s, count) draws by perturbed systems."""
        b = math.sqrt(self.scale) * self._from_A(count, generator)
        root = self.delta.sqrt().to(b.dtype)[:, None]
        return self.solved(b + root * self._normal(count, generator))

    def _from_A(self, count: int, generator: torch.Generator | None) -> Tensor:
        """(s, count) draws from N(0, A)."""
        R = self.curvature.root
        if R is None:
            raise OperatorError(
                expected="a curvature with a known root, for prior='evidence' without the matrix",
                got=self.A._title(),
                remedy="Give structure='full', or a prior precision.",
            )
        draws = (self.chosen.take(R._matvec(R.domain.gaussian(generator))) for _ in range(count))
        return stacked(count, draws).T

    def _chunks(self, count: int) -> list[int]:
        """Numbers of columns that make `count`, few enough that their systems fit into memory."""
        column = _VECTORS * self.A.domain.n * self.A.dtype.itemsize
        most = max(1, min(count, _BYTES // column))
        return [min(most, count - start) for start in range(0, count, most)]


def indefinite(got: str) -> OperatorError:
    """The error for a posterior without a maximum."""
    return OperatorError(
        expected="a positive definite precision matrix, as at a maximum of the posterior",
        got=got,
        remedy="Train further; raise the prior precision; or use structure='full', whose "
        "Gauss-Newton matrix is never indefinite.",
    )
