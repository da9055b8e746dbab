# SPDX-License-Identifier: Apache-2.0
"""Matrices of low rank, and their sums with a diagonal, which are cheap to invert."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from hesse.operators.algebra import LinearOperator
from hesse.operators.diagonal import DiagonalOperator
from hesse.operators.structure import diagonal_of, logdet_of
from hesse.vectors.places import Where, taken
from hesse.vectors.space import Space


class LowRankOperator(LinearOperator):
    """U diag(s) U'; s is converted to the dtype of U for products, and is best float64."""

    def __init__(self, space: Space, U: Tensor, s: Tensor) -> None:
        super().__init__(space, symmetric=True)
        self.U, self.s = U, s
        self._weights = s.to(U.dtype)

    def _matvec(self, v: Tensor) -> Tensor:
        return self.U @ (self._weights * self.domain.total(self.U.T @ v))

    def _matmat(self, block: Tensor) -> Tensor:
        return self.U @ (self._weights[:, None] * self.domain.total(self.U.T @ block))

    def _diagonal(self) -> Tensor:
        return self.U**2 @ self._weights

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Orthonormal V (n, r) and w (r,) with A = V diag(w) V', in float64."""
        V, R = self.domain.qr(self.U.double())
        w, P = torch.linalg.eigh((R * self.s.double()) @ R.T)
        return V @ P, w

    @property
    def signed_root(self) -> tuple[Tensor, Tensor]:
        """W = U |s|^(1/2) and J = diag(signs) with A = W J W', in float64."""
        s = self.s.double()
        return self.U.double() * s.abs().sqrt(), torch.where(s < 0.0, -1.0, 1.0).double()

    def _logdet(self) -> tuple[float, float]:
        return logdet_of(self._eigenvalues())

    def _eigenvalues(self) -> Tensor:
        _, w = self.spectrum
        return torch.cat([w, w.new_zeros(self.domain.n - len(w))])

    def _function(self, f: Callable[[Tensor], Tensor]) -> LinearOperator:
        """V (f(w) - f(0)) V' + f(0) I."""
        return self.shifted_function(f, 0.0, self.domain)

    def shifted_function(
        self, f: Callable[[Tensor], Tensor], c: float, space: Space
    ) -> LowRankPlusDiagonal:
        """f(A + c I) = V (f(w + c) - f(c)) V' + f(c) I; f(c) is not asked for where V is square."""
        (V, w), n = self.spectrum, space.n
        values = f(torch.cat([w, w.new_zeros(min(1, n - len(w)))]) + c)
        rest = values[len(w) :] if len(w) < n else values.new_zeros(1)
        changed = LowRankOperator(space, V.to(space.dtype), values[: len(w)] - rest)
        return LowRankPlusDiagonal(changed, rest.expand(space.size))

    def _updated_inverse(self, inverse: LinearOperator) -> LinearOperator | None:
        r"""Woodbury 1950, with J = sign(s) and W = U |s|^{1/2}.

        $$ (B + W J W^T)^{-1} = B^{-1} - B^{-1} W K^{-1} W^T B^{-1}, \qquad K = J + W^T B^{-1} W $$
        """
        if not inverse.symmetric or inverse.shape[0] != self.domain.n:
            return None
        W, signs = self.signed_root
        solved = inverse._matmat(W.to(self.dtype)).double()
        core = torch.diag(signs) + self.domain.total(W.T @ solved)
        eigenpairs = _diagonalised(core, solved, self.dtype)
        if eigenpairs is None:
            return None
        V, k = eigenpairs
        return inverse + LowRankOperator(self.domain, V.to(self.dtype), -1.0 / k)

    def _principal(self, space: Space, where: Where) -> LowRankOperator:
        return LowRankOperator(space, taken(self.U, where), self.s)

    def _compressed(self, Q: Tensor) -> LinearOperator:
        space = Space.flat(Q.shape[1], self.dtype, self.device)
        return LowRankOperator(space, self.domain.total(Q.T @ self.U), self.s)

    def _plus_diagonal(self, D: LinearOperator) -> LinearOperator:
        return LowRankPlusDiagonal(self, diagonal_of(D), self.domain.common(D.domain))

    @property
    def is_structured(self) -> bool:
        return True

    def _expression(self) -> str:
        return f"LowRank[{self.U.shape[1]}]"


class LowRankPlusDiagonal(LinearOperator):
    """U diag(s) U' + diag(d); d is converted for products, and is best float64.

    Where D is c I, all is known from the eigenvalues of U diag(s) U'; they are computed once for
    all c. Where D is positive, A is D^(1/2) (I + X) D^(1/2) with an X of low rank. Else there is
    the formula of Woodbury.
    """

    def __init__(self, low_rank: LowRankOperator, d: Tensor, space: Space | None = None) -> None:
        super().__init__(low_rank.domain if space is None else space, symmetric=True)
        self.low_rank, self.d = low_rank, d
        self._entries = d.to(low_rank.U.dtype)

    def _matvec(self, v: Tensor) -> Tensor:
        return self._entries * v + self.low_rank._matvec(v)

    def _matmat(self, block: Tensor) -> Tensor:
        return self._entries[:, None] * block + self.low_rank._matmat(block)

    def _diagonal(self) -> Tensor:
        return self._entries + self.low_rank._diagonal()

    def _principal(self, space: Space, where: Where) -> LinearOperator:
        return LowRankPlusDiagonal(self.low_rank._principal(space, where), taken(self.d, where))

    def _plus_diagonal(self, D: LinearOperator) -> LinearOperator:
        space = self.domain.common(D.domain)
        return LowRankPlusDiagonal(self.low_rank, self.d + diagonal_of(D), space)

    @cached_property
    def _shift(self) -> float | None:
        """c, where the diagonal is c I."""
        return self.domain.constant(self.d)

    @cached_property
    def _scaled(self) -> tuple[Tensor, LowRankOperator] | None:
        """D^(1/2) and X = D^(-1/2) U diag(s) U' D^(-1/2), in float64; None unless D is positive."""
        root = self.d.double().sqrt()  # NaN below zero
        if not self.domain.all_finite(1.0 / root):
            return None
        space = self.domain.in_dtype(torch.float64)
        U = self.low_rank.U.double() / root[:, None]
        return root, LowRankOperator(space, U, self.low_rank.s)

    def _split_shift(self) -> tuple[LinearOperator, float]:
        if self._shift is None:
            return self, 0.0
        return LowRankOperator(self.domain, self.low_rank.U, self.low_rank.s), self._shift

    def _inverse(self) -> LinearOperator | None:
        return self._exact_inverse

    @cached_property
    def _exact_inverse(self) -> LinearOperator | None:
        """Another operator of this kind."""
        if self._shift is not None:
            is_regular = _is_regular(self.low_rank.spectrum[1], self._shift, self)
            return self._function(torch.reciprocal) if is_regular else None
        if self._scaled is None:
            return self._woodbury()
        root, X = self._scaled
        if not _is_regular(X.spectrum[1], 1.0, self):
            return None
        inner = X.shifted_function(torch.reciprocal, 1.0, self.domain)
        U = (inner.low_rank.U / root[:, None]).to(self.dtype)
        low_rank = LowRankOperator(self.domain, U, inner.low_rank.s)
        return LowRankPlusDiagonal(low_rank, inner.d / self.d)

    def _woodbury(self) -> LinearOperator | None:
        """D^-1 - D^-1 W K^-1 W' D^-1; K is I plus a semi-definite matrix for a definite A."""
        core = self._core()
        if core is None:
            return None
        K, _, solved = core
        eigenpairs = _diagonalised(K, solved, self.dtype)
        if eigenpairs is None:
            return None
        V, k = eigenpairs
        correction = LowRankOperator(self.domain, V.to(self.dtype), -1.0 / k)
        return LowRankPlusDiagonal(correction, 1.0 / self.d.double())

    def _core(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """K = J + W' D^-1 W, the signs J, and D^-1 W, in float64; None for a singular D."""
        inverse_d = 1.0 / self.d.double()
        if not self.domain.all_finite(inverse_d):
            return None
        W, signs = self.low_rank.signed_root
        solved = inverse_d[:, None] * W
        return torch.diag(signs) + self.domain.total(W.T @ solved), signs, solved

    def _logdet(self) -> tuple[float, float] | None:
        """That of the eigenvalues, or det D det (I + X), or det D det J det K."""
        if (values := self._eigenvalues()) is not None:
            return logdet_of(values)
        if self._scaled is not None:
            sign, log = logdet_of(1.0 + self._scaled[1].spectrum[1])
            return sign, log + logdet_of(self.d, self.domain)[1]
        core = self._core()
        if core is None:
            return None
        K, signs, _ = core
        sign, log = torch.linalg.slogdet(K)
        sign_d, log_d = logdet_of(self.d, self.domain)
        return float(sign * signs.prod()) * sign_d, float(log) + log_d

    def _num_negative(self) -> int | None:
        """neg(A) = neg(I + X), as A is congruent to that; else neg(D) + pos(K) - pos(J).

        The latter as [[D, W], [W', -J]] has two Schur complements.
        """
        if self._shift is not None:
            return super()._num_negative()
        if self._scaled is not None:
            return int((self._scaled[1].spectrum[1] < -1.0).sum())
        core = self._core()
        if core is None:
            return None
        K, signs, _ = core
        k = torch.linalg.eigvalsh(K)
        below = int(self.domain.total((self.d < 0.0).sum()))
        return below + int((k > 0.0).sum()) - int((signs > 0.0).sum())

    def _eigenvalues(self) -> Tensor | None:
        return None if self._shift is None else self.low_rank._eigenvalues() + self._shift

    def _function(self, f: Callable[[Tensor], Tensor]) -> LowRankPlusDiagonal | None:
        c = self._shift
        return None if c is None else self.low_rank.shifted_function(f, c, self.domain)

    def _root(self) -> LinearOperator | None:
        """D^(1/2) (I + X)^(1/2)."""
        if self._scaled is None:
            return None
        root, X = self._scaled
        if bool((X.spectrum[1] <= -1.0).any()):
            return None
        inner = X.shifted_function(torch.sqrt, 1.0, self.domain)
        return DiagonalOperator(self.domain, root.to(self.dtype)) @ inner

    @property
    def is_structured(self) -> bool:
        return True

    def _expression(self) -> str:
        # Of vectors that ranks share it takes a message: one of them may show the operator alone.
        is_here = self.domain.shards is None or "_shift" in vars(self)
        shift = f"{self._shift:g} I" if is_here and self._shift is not None else "D"
        return f"({self.low_rank._expression()} + {shift})"


def _is_regular(w: Tensor, c: float, A: LinearOperator) -> bool:
    """Whether V diag(w) V' + c I can be inverted: no w + c is zero up to its rounding error.

    That of w is of the size of the largest w, in float64; that of c and U, in the dtype of A, shows
    where w and c cancel.
    """
    if len(w) < A.domain.n and not math.isfinite(_reciprocal(c)):
        return False
    if not len(w):
        return True
    values, eps = (w + c).abs(), torch.finfo(torch.float64).eps
    cancelled = values <= torch.finfo(A.dtype).eps * w.abs().clamp(min=abs(c))
    lost = values <= len(w) * eps * w.abs().max()
    return not bool((cancelled | lost).any())


def _reciprocal(c: float) -> float:
    return math.inf if c == 0.0 else 1.0 / c


def _diagonalised(K: Tensor, solved: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """B^-1 W P and k, for the eigenvalues k and eigenvectors P of K; None for a singular K."""
    k, P = torch.linalg.eigh((K + K.T) / 2)
    if len(k) and bool(k.abs().min() <= torch.finfo(dtype).eps * k.abs().max()):
        return None
    return solved @ P, k
