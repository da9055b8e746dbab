# SPDX-License-Identifier: Apache-2.0
"""LOBPCG: a block of vectors improved by preconditioned residuals, for A u = theta B u.

Every step is a Rayleigh-Ritz projection on the span of the block X, the preconditioned residuals W
and the previous steps P. All three are kept B-orthonormal, so that the projected problem is an
ordinary one and stays well conditioned (Hetmaniuk & Lehoucq 2006).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hesse.errors import OperatorError, Status, check_choice
from hesse.krylov.eigenpairs import Eigenpairs, Wanted
from hesse.operators.base import LinearOperator
from hesse.progress import Run
from hesse.vectors import gaussian, norm

# Images A X of vectors that are combined again and again are computed anew so often.
_RENEW = 20


@dataclass
class Block:
    """Rows with their images under A and B."""

    rows: Tensor
    A: Tensor
    B: Tensor

    def combined(self, coordinates: Tensor) -> Block:
        """The rows with these coordinates (columns)."""
        c = coordinates.T.to(self.rows)
        same = self.B is self.rows
        rows = c @ self.rows
        return Block(rows, c @ self.A, rows if same else c @ self.B)

    def part(self, chosen: Tensor) -> Block:
        """Some of the rows."""
        rows = self.rows[chosen]
        return Block(rows, self.A[chosen], rows if self.B is self.rows else self.B[chosen])

    @staticmethod
    def joined(blocks: list[Block]) -> Block:
        """The rows of all."""
        rows = torch.cat([block.rows for block in blocks])
        same = all(block.B is block.rows for block in blocks)
        B = rows if same else torch.cat([block.B for block in blocks])
        return Block(rows, torch.cat([block.A for block in blocks]), B)


def lobpcg(
    A: LinearOperator,
    wanted: Wanted,
    start: Tensor,
    *,
    B: LinearOperator | None,
    M: LinearOperator | None,
    generator: torch.Generator | None,
    run: Run,
) -> Eigenpairs:
    """The smallest (SA) or largest (LA) eigenvalues; `hesse.eigsh` has the arguments."""
    _check(A, wanted, B)
    given = [v for v in start.T if bool(v.any())]  # a vector of zeros is no direction
    q = min(max(start.shape[1], wanted.k + max(1, wanted.k // 5)), A.shape[0])
    more = [gaussian(A.domain, generator) for _ in range(q - len(given))]
    iteration = Lobpcg(A, wanted, B, M)
    state = LobpcgState()
    with run:
        X = iteration.project(iteration.with_images(torch.stack([*given, *more])), q)
        run.status = iteration.improve(state, X, q, run)
    if state.block is None:
        raise KeyboardInterrupt
    return iteration.result(state.block, run.status)


@dataclass
class LobpcgState:
    """What a callback sees after every step."""

    values: Tensor = field(default_factory=lambda: torch.zeros(0))
    residuals: Tensor = field(default_factory=lambda: torch.zeros(0))
    products: int = 0
    block: Block | None = None


class Lobpcg:
    """The iteration: see the module."""

    def __init__(
        self, A: LinearOperator, wanted: Wanted, B: LinearOperator | None, M: LinearOperator | None
    ) -> None:
        self.A, self.B, self.M, self.wanted = A, B, M, wanted
        self.products, self.largest = 0, 0.0

    def improve(self, state: LobpcgState, X: Block, q: int, run: Run) -> Status:
        """Steps until the wanted pairs have converged."""
        P: Block | None = None
        for step in itertools.count(1):
            values, R, norms, tolerance = self._residuals(X)
            best = self.wanted.among(values)
            state.values, state.residuals = values[best], norms[best]
            state.products, state.block = self.products, X.part(best)
            if bool((norms[best] <= tolerance[best]).all()):
                return Status.CONVERGED
            if not run.after_step(state):
                return run.status
            known = [X] if P is None else [X, P]
            W = self.with_images(self._preconditioned(R[norms > tolerance]), known)
            if len(W.rows) == 0 and P is None:
                return Status.STAGNATED
            X, P = self._projected(Block.joined([*known, W]), len(X.rows), q)
            if step % _RENEW == 0:
                X = Block(X.rows, self._images(X.rows), X.B)
        raise AssertionError

    def project(self, X: Block, q: int) -> Block:
        """The Ritz vectors of a block."""
        return self._projected(X, len(X.rows), q)[0]

    def _projected(self, S: Block, own: int, q: int) -> tuple[Block, Block | None]:
        """The q best Ritz vectors of S, and the steps to them from its first `own` rows."""
        H = self.A.gram(S.rows, S.A)
        values, vectors = torch.linalg.eigh((H + H.T) / 2)
        C = vectors[:, self.wanted.among(values, q)]
        step = C.clone()
        step[:own] = 0.0
        step -= C @ (C.T @ step)
        U, sizes, _ = torch.linalg.svd(step, full_matrices=False)
        U = U[:, sizes > 1e-8]
        return S.combined(C), (S.combined(U) if U.shape[1] else None)

    def _residuals(self, X: Block) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ritz values of the rows, A u - theta B u, its norms, and how large they may be."""
        pairs = zip(X.rows, X.A, strict=True)
        values = torch.tensor([self.A.inner(u, Au) for u, Au in pairs], dtype=torch.float64)
        R = X.A - values[:, None].to(X.A) * X.B
        norms = torch.tensor([norm(r) for r in R], dtype=torch.float64)
        scale = torch.tensor([norm(Bu) for Bu in X.B], dtype=torch.float64)
        self.largest = max(self.largest, float(values.abs().max()))
        return values, R, norms, scale * self.wanted.tolerance(values, self.largest)

    def with_images(self, rows: Tensor, against: Sequence[Block] = ()) -> Block:
        """The rows, made B-orthonormal and orthogonal to other blocks, with their products."""
        for _ in range(2):  # twice is enough
            for block in against:
                rows = rows - self.A.gram(block.B, rows).T.to(rows) @ block.rows
            rows = self._orthonormal(rows)
        return Block(rows, self._images(rows), self._mass(rows))

    def _orthonormal(self, rows: Tensor) -> Tensor:
        """B-orthonormal rows of the same span; directions that vanish are dropped."""
        if len(rows) == 0:
            return rows
        rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=1e-300)
        values, vectors = torch.linalg.eigh(self.A.gram(rows, self._mass(rows)))
        rounding = 100 * self.wanted.eps * float(values.abs().max())
        if float(values[0]) < -rounding:
            raise OperatorError(
                f"hesse.eigsh({self.A}, B={self.B})",
                expected="a positive definite B",
                got=f"u'B u = {float(values[0]):.3g} for some u with |u| <= 1",
                remedy="Shift B by a multiple of the identity, or exchange A and B.",
            )
        good = values > rounding
        return (vectors[:, good] / values[good].sqrt()).T.to(rows) @ rows

    def _preconditioned(self, R: Tensor) -> Tensor:
        return R if self.M is None else self.M._matmat(R.T).T

    def _mass(self, rows: Tensor) -> Tensor:
        return rows if self.B is None else self.B._matmat(rows.T).T

    def _images(self, rows: Tensor) -> Tensor:
        if len(rows) == 0:
            return rows
        self.products += len(rows)
        return self.A._check_finite(self.A._matmat(rows.T).T, f"hesse.eigsh({self.A})")

    def result(self, X: Block, status: Status) -> Eigenpairs:
        """The pairs, with residuals from products of their own."""
        X = Block(X.rows, self._images(X.rows), X.B)
        values, _, norms, tolerance = self._residuals(X)
        order = values.argsort()
        converged = (norms <= tolerance)[order]
        if status is Status.CONVERGED and not bool(converged.all()):
            status = Status.STAGNATED
        bounds = norms + 16 * self.wanted.eps * self.largest
        return Eigenpairs(
            values[order],
            X.rows[order.to(X.rows.device)].T,
            bounds[order],
            converged,
            self.products,
            status,
        )


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
