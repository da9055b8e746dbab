# SPDX-License-Identifier: Apache-2.0
"""LOBPCG: a block of vectors improved by preconditioned residuals, for A u = theta B u.

Every step is a Rayleigh-Ritz projection on the span of the block X, the preconditioned residuals W
and the previous steps P: see `trial_space`.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from hesse.errors import OperatorError, Status, check_choice, check_count
from hesse.krylov.eigen_problem import EigenMethod, EigenProblem
from hesse.krylov.eigenpairs import Eigenpairs, Selection
from hesse.krylov.preconditioners import as_preconditioner
from hesse.krylov.recurrence import Recurrence
from hesse.krylov.rounding import unit_roundoff
from hesse.krylov.starting_block import random_start
from hesse.krylov.trial_space import TrialSpace, check_positive
from hesse.operators.algebra import LinearOperator
from hesse.operators.checks import check_finite_products
from hesse.progress import Run, uninterrupted
from hesse.vectors.space import unshared

# Products with B before the iteration.
_DEFINITE_STEPS = 10

# A space of this dimension or less is searched as a whole: that takes n products.
_SMALL = 64

# The iteration has stagnated if it gains nothing in so many steps.
_PATIENCE = 50

# The images A X, which are combined at every step, are recomputed after so many steps.
_RECOMPUTE = 20


@dataclass(frozen=True, repr=False)
class LOBPCG(EigenMethod):
    """A block of vectors improved with a preconditioner, for A u = theta B u: "SA" or "LA".

    Args:
        preconditioner: an approximation of the inverse of A, or its name, as in `hesse.solve`.
        block_size: vectors that are improved; at least, and by default, about 1.2 k.

    Cost: one product a step for every vector of the block that has not converged, and k at the end;
        7 vectors for each of the block, 10 with B. Before the first, ten products with B test
        whether it is positive definite.

    Raises:
        HesseError: another end of the spectrum; A or B not symmetric, B not positive definite.

    Reference: Knyazev 2001, doi:10.1137/S1064827500366124; Hetmaniuk & Lehoucq 2006,
        doi:10.1016/j.jcp.2006.03.007 (the basis).

    >>> from hesse.krylov import eigsh
    >>> A = torch.diag(torch.arange(1.0, 9.0))
    >>> eigsh(A, 2, "SA", B=2 * torch.eye(8), method=LOBPCG(preconditioner="jacobi")).values
    tensor([0.5000, 1.0000], dtype=torch.float64)
    """

    name: ClassVar[str] = "lobpcg"
    preconditioner: LinearOperator | Tensor | str | None = None
    block_size: int | None = None

    def _check(self) -> None:
        if self.block_size is not None:
            self._set(block_size=check_count("block_size", self.block_size, 1))

    def find_pairs(self, problem: EigenProblem) -> Eigenpairs:
        A, k, run = problem.A, problem.k, problem.run
        self._refuse("lanczos", checkpoint=run.checkpoint, memory_budget=problem.memory_budget)
        _check_problem(problem)
        start = problem.start(self.block_size)
        b = start.shape[1]
        M = as_preconditioner(self.preconditioner, A, problem.generator, run.left())
        run.before = built = 0 if M is None else M.products
        few, q = _affordable(k, b, A.domain.n, run)
        run.set_default_limit(built + 200 * max(2 * k + 10, 30, b))
        # The products at the end, and those of a step that recomputes the images of the block.
        run.reserved = few + 2 * q - 1
        iteration = _Iteration(problem, problem.selection(few), q, start, M)
        del start  # the iteration has a copy
        problem.release_given()
        pairs = iteration.solve(run)
        status = pairs.status if few == k else Status.MAX_PRODUCTS
        return Eigenpairs(*pairs[:4], pairs.products + built, status)


@dataclass
class LOBPCGState:
    """What a callback sees after every step."""

    values: Tensor = field(default_factory=lambda: torch.zeros(0))
    residuals: Tensor = field(default_factory=lambda: torch.zeros(0))
    products: int = 0


class _Iteration:
    """The iteration for the smallest (SA) or largest (LA) eigenvalues.

    Args:
        problem: A u = theta B u; no B for the identity.
        selection: the pairs that are found, perhaps fewer than those of the problem.
        q: vectors of a block.
        start: a block (n, j); a column of zeros is ignored, and missing ones are random.
        M: preconditioner.
    """

    def __init__(
        self,
        problem: EigenProblem,
        selection: Selection,
        q: int,
        start: Tensor,
        M: LinearOperator | None,
    ) -> None:
        space = problem.A.domain
        self.selection, self.M, self.largest = selection, M, 0.0
        self.progress: deque[tuple[float, float]] = deque(maxlen=_PATIENCE)
        self.space = TrialSpace(problem.A, problem.B, q, selection.eps)
        given = (v for v in start.T if space.any(v))
        more = (random_start(problem.A, problem.generator) for _ in range(q))
        self.space.put(itertools.islice(itertools.chain(given, more), q))

    def solve(self, run: Run) -> Eigenpairs:
        """The wanted pairs, with residuals from products of their own."""
        with run:
            self.space.expand()
            self._project()
            run.status = self._improve(LOBPCGState(), run)
        if self.space.x == 0:
            raise KeyboardInterrupt
        return self._result(run.status)

    def _improve(self, state: LOBPCGState, run: Run) -> Status:
        """Steps until the wanted pairs have converged."""
        space = self.space
        for step in itertools.count(1):
            values, norms, tolerance, _ = self._residuals()
            best = self.selection.among(values)
            state.values, state.residuals = values[best], norms[best]
            state.products = space.products
            if bool((norms[best] <= tolerance[best]).all()):
                return Status.CONVERGED
            if self._stagnates(values[best], norms[best] / tolerance[best]):
                return Status.STAGNATED
            if not run.after_step(state):
                return run.status
            space.keep(norms > tolerance)
            if self.M is not None:
                space.put(self.M._matmat(space.new.T).T)
            space.expand()
            if space.size == space.x:
                return Status.STAGNATED
            self._project()
            if step % _RECOMPUTE == 0:
                space.recompute_images()
        raise AssertionError

    def _stagnates(self, values: Tensor, excess: Tensor) -> bool:
        """Whether neither the sum of the values nor the residuals improve in many steps."""
        now = float(values.sum()), float(excess.max())
        is_full = len(self.progress) == _PATIENCE
        before = self.progress[0] if is_full else (math.inf, math.inf)
        self.progress.append(now)
        moved = abs(now[0] - before[0]) / float(values.abs().sum() or 1.0)
        return moved <= 10 * self.selection.eps and now[1] > 0.5 * before[1]

    def _project(self) -> None:
        """X becomes the best Ritz vectors."""
        with uninterrupted():
            values, vectors = self.space.projected()
            self.space.choose(vectors[:, self.selection.among(values, self.space.q)])

    def _residuals(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ritz values of X, the norms of A u - theta B u, how large they may be, and rounding."""
        values, norms, image_norms, rounding = self.space.write_residuals()
        self.largest = max(self.largest, float(values.abs().max()))
        if self.space.B is None:
            rounding = torch.full_like(norms, 16 * self.selection.eps * self.largest)
        tolerance = image_norms * self.selection.tolerance(values, self.largest)
        return values, norms, torch.maximum(tolerance, rounding), rounding

    def _result(self, status: Status) -> Eigenpairs:
        space, k = self.space, min(self.selection.k, self.space.x)
        space.narrow(self.selection.among(torch.arange(space.x)))
        space.recompute_images()
        values, norms, tolerance, rounding = self._residuals()
        order = values.argsort()
        converged = (norms <= tolerance)[order]
        if status is Status.CONVERGED and not bool(converged.all()):
            status = Status.STAGNATED
        bounds = norms + rounding
        return Eigenpairs(
            values[order],
            space.V[:k][order.to(space.V.device)].T,
            bounds[order],
            converged,
            space.products,
            status,
        )


def _block_size(k: int, b: int, n: int) -> int:
    """How many vectors are improved for k pairs."""
    return min(max(b, k + max(1, k // 5)), n)


def _affordable(k: int, b: int, n: int, run: Run) -> tuple[int, int]:
    """For how many pairs there are products, and the block: at the start it takes as many products.

    The pairs take one each at the end. A small space is searched as a whole.
    """
    run.require(_block_size(1, b, n) + 1, "a block and the verification at the end take")
    few = next(j for j in range(k, 0, -1) if _block_size(j, b, n) + j <= run.left())
    q = _block_size(few, b, n)
    return (k, n) if n <= max(3 * q, _SMALL) and n + k <= run.left() else (few, q)


def _check_problem(problem: EigenProblem) -> None:
    A, B = problem.A, problem.B
    check_choice("which", problem.which, ["SA", "LA"])
    if B is not None and (B.shape != A.shape or not B.symmetric):
        raise OperatorError(
            expected=f"a symmetric B of shape {A.shape}",
            got=str(B),
            remedy="Give the matrix of the inner product, symmetric positive definite.",
        )
    if B is not None:
        _check_definite(B)


def _check_definite(B: LinearOperator) -> None:
    """Raise if a few steps of the Lanczos process show that B is not positive definite.

    The iteration need not meet such a direction, and would then give a wrong end of the spectrum.
    """
    process = Recurrence(B, random_start(B, torch.Generator().manual_seed(0)))
    while process.size < min(_DEFINITE_STEPS, B.domain.n) and not process.is_invariant:
        w = check_finite_products(B, B._matvec(process.following))
        process.take_in(unshared(w, process.following))
    diagonal, below = process.tridiagonal
    T = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    below = torch.tensor(below[: len(T) - 1], dtype=torch.float64)
    values = torch.linalg.eigvalsh(T + torch.diag(below, -1))
    check_positive(float(values[0]), float(values.abs().max()), unit_roundoff(B))
