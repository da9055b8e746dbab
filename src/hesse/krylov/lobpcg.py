# SPDX-License-Identifier: Apache-2.0
"""LOBPCG: a block of vectors improved by preconditioned residuals, for A u = theta B u.

Every step is a Rayleigh-Ritz projection on the span of the block X, the preconditioned residuals W
and the previous steps P: see `trial_space`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hesse.errors import OperatorError, Status, check_choice
from hesse.krylov.eigenpairs import Eigenpairs, Wanted
from hesse.krylov.trial_space import TrialSpace
from hesse.operators.algebra import LinearOperator
from hesse.progress import Run, uninterrupted

# Images A X of vectors that are combined again and again are computed anew so often.
_RENEW = 20


@dataclass
class LobpcgState:
    """What a callback sees after every step."""

    values: Tensor = field(default_factory=lambda: torch.zeros(0))
    residuals: Tensor = field(default_factory=lambda: torch.zeros(0))
    products: int = 0


class Lobpcg:
    """The iteration, for the smallest (SA) or largest (LA) eigenvalues; see `hesse.eigsh`.

    Args:
        A, B: of A u = theta B u; no B for the identity.
        M: preconditioner.
        wanted: which pairs, and how accurate.
        start: a block (n, j); a column of zeros is none, and missing ones are random.
    """

    def __init__(
        self,
        A: LinearOperator,
        wanted: Wanted,
        start: Tensor,
        *,
        B: LinearOperator | None,
        M: LinearOperator | None,
        generator: torch.Generator | None,
    ) -> None:
        _check(A, wanted, B)
        self.wanted, self.M, self.largest = wanted, M, 0.0
        q = block_size_of(wanted.k, start.shape[1], A.shape[0])
        self.space = TrialSpace(A, B, q, wanted.eps)
        given = (v for v in start.T if bool(v.any()))
        more = (A.domain.gaussian(generator) for _ in range(q))
        self.space.put(itertools.islice(itertools.chain(given, more), q))

    def solve(self, run: Run) -> Eigenpairs:
        """The wanted pairs, with residuals from products of their own."""
        with run:
            self.space.expand()
            self._project()
            run.status = self._improve(LobpcgState(), run)
        if self.space.x == 0:
            raise KeyboardInterrupt
        return self._result(run.status)

    def _improve(self, state: LobpcgState, run: Run) -> Status:
        """Steps until the wanted pairs have converged."""
        space = self.space
        for step in itertools.count(1):
            values, norms, tolerance = self._residuals()
            best = self.wanted.among(values)
            state.values, state.residuals = values[best], norms[best]
            state.products = space.products
            if bool((norms[best] <= tolerance[best]).all()):
                return Status.CONVERGED
            if not run.after_step(state):
                return run.status
            space.keep(norms > tolerance)
            if self.M is not None:
                space.put(self.M._matmat(space.new.T).T)
            space.expand()
            if space.size == space.x:
                return Status.STAGNATED
            self._project()
            if step % _RENEW == 0:
                space.renew()
        raise AssertionError

    def _project(self) -> None:
        """X becomes the best Ritz vectors."""
        with uninterrupted():
            values, vectors = self.space.projected()
            self.space.choose(vectors[:, self.wanted.among(values, self.space.q)])

    def _residuals(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values of X, the norms of A u - theta B u, and how large they may be."""
        values, norms, lengths = self.space.write_residuals()
        self.largest = max(self.largest, float(values.abs().max()))
        return values, norms, lengths * self.wanted.tolerance(values, self.largest)

    def _result(self, status: Status) -> Eigenpairs:
        space, k = self.space, min(self.wanted.k, self.space.x)
        space.narrow(self.wanted.among(torch.arange(space.x)))
        space.renew()
        values, norms, tolerance = self._residuals()
        order = values.argsort()
        converged = (norms <= tolerance)[order]
        if status is Status.CONVERGED and not bool(converged.all()):
            status = Status.STAGNATED
        bounds = norms + 16 * self.wanted.eps * self.largest
        return Eigenpairs(
            values[order],
            space.V[:k][order.to(space.V.device)].T,
            bounds[order],
            converged,
            space.products,
            status,
        )


def block_size_of(k: int, b: int, n: int) -> int:
    """Vectors that lobpcg improves."""
    return min(max(b, k + max(1, k // 5)), n)


def affordable(k: int, b: int, n: int, run: Run, call: str) -> int:
    """For how many pairs there are products: a block at the start, and the pairs at the end."""
    run.require(block_size_of(1, b, n) + 1, call, "a block and a look at the end take")
    return next(j for j in range(k, 0, -1) if block_size_of(j, b, n) + j <= run.left())


def _check(A: LinearOperator, wanted: Wanted, B: LinearOperator | None) -> None:
    call = f"hesse.eigsh({A}, method='lobpcg')"
    check_choice("which", wanted.which, ["SA", "LA"], call)
    if B is not None and (B.shape != A.shape or not B.symmetric):
        raise OperatorError(
            call,
            expected=f"a symmetric B of shape {A.shape}",
            got=str(B),
            remedy="Give the matrix of the inner product, symmetric positive definite.",
        )
