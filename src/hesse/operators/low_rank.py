# SPDX-License-Identifier: Apache-2.0
"""Low-rank operators U diag(s) U', and their sums with a diagonal, which are cheap to invert."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.errors import DeviceError, DtypeError, ShapeError, StructureError
from hesse.operators.algebra import LinearOperator
from hesse.operators.structure import diagonal_of, logdet_of
from hesse.vectors.arrays import as_tensor
from hesse.vectors.space import Space


class LowRankOperator(LinearOperator):
    """U diag(s) U'."""

    def __init__(self, space: Space, U: Tensor, s: Tensor) -> None:
        super().__init__(space, symmetric=True)
        self.U, self.s = U, s

    def _matvec(self, v: Tensor) -> Tensor:
        return self.U @ (self.s * (self.U.T @ v))

    def _matmat(self, block: Tensor) -> Tensor:
        return self.U @ (self.s[:, None] * (self.U.T @ block))

    def _diagonal(self) -> Tensor:
        return self.U**2 @ self.s

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Orthonormal V (n, r) and w (r,) with A = V diag(w) V', in float64."""
        V, R = torch.linalg.qr(self.U.double())
        w, P = torch.linalg.eigh((R * self.s.double()) @ R.T)
        return V @ P, w

    def _logdet(self) -> tuple[float, float] | None:
        return (0.0, -math.inf) if self.U.shape[1] < self.domain.n else None

    def _eigenvalues(self) -> Tensor:
        _, w = self.spectrum
        return torch.cat([w, w.new_zeros(self.domain.n - len(w))])

    def _function(self, f: Callable[[Tensor], Tensor]) -> LinearOperator:
        """V (f(w) - f(0)) V' + f(0) I."""
        V, w = self.spectrum
        values = f(torch.cat([w, w.new_zeros(1)]))
        changed, rest = values[:-1] - values[-1], values[-1:].expand(self.domain.n)
        parts = (part.to(self.dtype) for part in (V, changed, rest))
        return LowRankPlusDiagonal(self.domain, *parts)

    def _updated_inverse(self, inverse: LinearOperator) -> LinearOperator | None:
        r"""Woodbury 1950, with J = sign(s) and W = U |s|^{1/2}.

        $$ (B + W J W^T)^{-1} = B^{-1} - B^{-1} W K^{-1} W^T B^{-1}, \qquad K = J + W^T B^{-1} W $$
        """
        if not inverse.symmetric or inverse.shape[0] != self.domain.n:
            return None
        W, signs = _signed_root(self.U, self.s)
        solved = inverse._matmat(W.to(self.dtype)).double()
        eigenpairs = _inverted(signs, W, solved, self.dtype)
        if eigenpairs is None:
            return None
        V, k = eigenpairs
        return inverse + LowRankOperator(self.domain, V.to(self.dtype), (-1.0 / k).to(self.dtype))

    def _principal(self, space: Space, where: slice | Tensor) -> LinearOperator:
        return LowRankOperator(space, self.U[where], self.s)

    def _compressed(self, Q: Tensor) -> LinearOperator:
        space = Space.flat(Q.shape[1], self.dtype, self.device)
        return LowRankOperator(space, Q.T @ self.U, self.s)

    def _plus_diagonal(self, D: LinearOperator) -> LinearOperator:
        space = self.domain.common(D.domain)
        return LowRankPlusDiagonal(space, self.U, self.s, diagonal_of(D))

    @property
    def is_structured(self) -> bool:
        return True


class LowRankPlusDiagonal(LinearOperator):
    """U diag(s) U' + diag(d)."""

    def __init__(self, space: Space, U: Tensor, s: Tensor, d: Tensor) -> None:
        super().__init__(space, symmetric=True)
        self.U, self.s, self.d = U, s, d

    def _matvec(self, v: Tensor) -> Tensor:
        return self.d * v + self.U @ (self.s * (self.U.T @ v))

    def _matmat(self, block: Tensor) -> Tensor:
        return self.d[:, None] * block + self.U @ (self.s[:, None] * (self.U.T @ block))

    def _diagonal(self) -> Tensor:
        return self.d + self.U**2 @ self.s

    def _principal(self, space: Space, where: slice | Tensor) -> LinearOperator:
        return LowRankPlusDiagonal(space, self.U[where], self.s, self.d[where])

    def _plus_diagonal(self, D: LinearOperator) -> LinearOperator:
        space = self.domain.common(D.domain)
        return LowRankPlusDiagonal(space, self.U, self.s, self.d + diagonal_of(D))

    def _inverse(self) -> LinearOperator | None:
        r"""Another operator of this kind (Woodbury 1950), with J = sign(s) and R = |s|^{1/2}.

        $$ D^{-1} - D^{-1} U R K^{-1} R U^T D^{-1}, \qquad K = J + R U^T D^{-1} U R $$

        The symmetric K, I plus a semi-definite matrix where A is definite, is diagonalised.
        """
        inverse_d = 1.0 / self.d.double()
        if not self.domain.all_finite(inverse_d):
            return None
        W, signs = _signed_root(self.U, self.s)
        eigenpairs = _inverted(signs, W, inverse_d[:, None] * W, self.dtype)
        if eigenpairs is None:
            return None
        V, k = eigenpairs
        factors = (V.to(self.dtype), (-1.0 / k).to(self.dtype), inverse_d.to(self.dtype))
        return LowRankPlusDiagonal(self.domain, *factors)

    def _logdet(self) -> tuple[float, float] | None:
        """det D det J det K."""
        inverse_d = 1.0 / self.d.double()
        if not self.domain.all_finite(inverse_d):
            return None
        W, signs = _signed_root(self.U, self.s)
        sign, log = torch.linalg.slogdet(torch.diag(signs) + W.T @ (inverse_d[:, None] * W))
        sign_d, log_d = logdet_of(self.d)
        return float(sign * signs.prod()) * sign_d, float(log) + log_d

    def _num_negative(self) -> int | None:
        """neg(A) = neg(D) + pos(K) - pos(J), as [[D, W], [W', -J]] has two Schur complements."""
        inverse_d = 1.0 / self.d.double()
        if not self.domain.all_finite(inverse_d):
            return None
        W, signs = _signed_root(self.U, self.s)
        k = torch.linalg.eigvalsh(torch.diag(signs) + W.T @ (inverse_d[:, None] * W))
        return int((self.d < 0.0).sum()) + int((k > 0.0).sum()) - int((signs > 0.0).sum())

    @property
    def _shift(self) -> Tensor | None:
        """The entry of a diagonal that is a multiple of the identity, shape (1,), float64."""
        return None if self.domain.any(self.d != self.d[0]) else self.d[:1].double()

    def _low_rank(self) -> LowRankOperator:
        return LowRankOperator(self.domain, self.U, self.s)

    def _eigenvalues(self) -> Tensor | None:
        c = self._shift
        return None if c is None else self._low_rank()._eigenvalues() + c

    def _function(self, f: Callable[[Tensor], Tensor]) -> LinearOperator | None:
        c = self._shift
        return None if c is None else self._low_rank()._function(lambda x: f(x + c))

    @property
    def is_structured(self) -> bool:
        return True


def _signed_root(U: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """W and J = diag(signs) with U diag(s) U' = W J W', in float64."""
    exact = s.double()
    return U.double() * exact.abs().sqrt(), torch.where(exact < 0.0, -1.0, 1.0).double()


def _inverted(
    signs: Tensor, W: Tensor, solved: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor] | None:
    """Eigenvalues k of K = J + W' B^-1 W and B^-1 W P, from B^-1 W; None for a singular K."""
    K = torch.diag(signs) + W.T @ solved
    k, P = torch.linalg.eigh((K + K.T) / 2)
    if len(k) and bool(k.abs().min() <= torch.finfo(dtype).eps * k.abs().max()):
        return None
    return solved @ P, k


@public("hesse.low_rank_operator(U, s)", nested=False)
def low_rank_operator(U: Tensor, s: Tensor) -> LowRankOperator:
    r"""The symmetric operator of low rank with these factors.

    $$ A = U \operatorname{diag}(s)\, U^T $$

    With a diagonal added, as in A + c I, its inverse is of the same form, and cheap.

    Args:
        U: matrix of shape (n, r), a tensor or a NumPy array; its columns need not be orthonormal.
        s: weights of shape (r,), of any sign.

    Cost: 4 n r operations a product; n r + r numbers. The inverse of A + D takes n r^2 operations
        once, and n r numbers; its error is that of inverting D: eps |s| |U|^2 / |d| relative to
        A + D.

    Raises:
        HesseError: shapes, dtypes or devices that do not match.

    References: Woodbury 1950, Inverting modified matrices, Princeton Statistical Research Group,
        memorandum 42.

    >>> from hesse.operators import identity_operator
    >>> A = low_rank_operator(torch.tensor([[1.0], [1.0]]), torch.tensor([3.0]))
    >>> A @ torch.tensor([1.0, 0.0])
    tensor([3., 3.])
    >>> (A + identity_operator(2))._inverse().to_dense() * 7      # [[4, 3], [3, 4]]^-1
    tensor([[ 4.0000, -3.0000],
            [-3.0000,  4.0000]])
    """
    U, s = as_tensor(U), as_tensor(s)
    for name, factor, ndim in (("U", U, 2), ("s", s, 1)):
        _check_factor(name, factor, ndim)
    if U.shape[1] != len(s):
        raise ShapeError(
            expected=f"s of shape ({U.shape[1]},), one weight a column of U",
            got=f"shape {tuple(s.shape)}",
            remedy="Give U of shape (n, r) and s of shape (r,).",
        )
    if U.dtype != s.dtype:
        raise DtypeError(
            expected=f"s of dtype {U.dtype}, like U",
            got=str(s.dtype),
            remedy=f"Convert it: s.to({U.dtype}).",
        )
    if U.device != s.device:
        raise DeviceError(
            expected=f"s on {U.device}, like U",
            got=str(s.device),
            remedy=f"Move it: s.to('{U.device}').",
        )
    return LowRankOperator(Space.flat(U.shape[0], U.dtype, U.device), U.detach(), s.detach())


def _check_factor(name: str, factor: Tensor, ndim: int) -> None:
    if not isinstance(factor, Tensor):
        raise StructureError(
            expected=f"{name} to be a tensor or a NumPy array",
            got=f"{type(factor).__module__}.{type(factor).__name__}",
            remedy=f"Convert it with torch.as_tensor({name}).",
        )
    if factor.ndim != ndim:
        raise ShapeError(
            expected="U of shape (n, r) and s of shape (r,)",
            got=f"{name} of shape {tuple(factor.shape)}",
            remedy="For one vector u write u[:, None].",
        )
    Space.of(factor, what=name)  # raises unless of a real floating-point dtype
