# SPDX-License-Identifier: Apache-2.0
"""`low_rank_operator`: a matrix of low rank from factors, or from what `eigsh` or `svds` found."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.errors import ArgumentError, DeviceError, DtypeError, ShapeError, StructureError, kind_of
from hesse.operators.algebra import LinearOperator
from hesse.operators.low_rank import LowRankOperator
from hesse.operators.low_rank_map import LowRankMap
from hesse.result import Result
from hesse.vectors.arrays import as_tensor
from hesse.vectors.space import Space


class _Factors(NamedTuple):
    """U diag(s) V', with V = U where there is none, and the spaces that are known."""

    U: Any
    s: Any
    V: Any
    domain: Space | None = None
    codomain: Space | None = None


@public("hesse.low_rank_operator(U, s)", nested=False)
def low_rank_operator(
    U: Tensor | Result, s: Tensor | None = None, V: Tensor | None = None
) -> LinearOperator:
    r"""The operator of low rank with these factors.

    $$ A = U \operatorname{diag}(s)\, U^T, \quad \text{or} \quad
       A = U \operatorname{diag}(s)\, V^T $$

    A + D, for a multiple of the identity or a diagonal operator D, is of low rank plus diagonal:
    its inverse is of the same form, and systems, determinants, traces, diagonals and samples of the
    normal distribution take no product. Where D = c I, so do eigenvalues and functions.

    Args:
        U: matrix of shape (n, r), a tensor or a NumPy array; its columns need not be orthonormal,
            and may be more than n. Or the result of `hesse.eigsh` or `hesse.svds`, for the part of
            the matrix that it found, on trees like those of the matrix.
        s: weights of shape (r,), of any sign, of the dtype of U or float64.
        V: matrix of shape (m, r) for an operator that is not symmetric, from (m,) to (n,). So
            `low_rank_operator(*torch.svd_lowrank(M))` approximates M.

    The factors are copied.

    Cost: 4 n r operations a product; n r numbers. What is known of A + D takes n r^2 operations,
        for all multiples of the identity together, and 2 n r numbers in float64; the error of the
        inverse is that of inverting D: eps |s| |U|^2 / |d| relative to A + D.

    Raises:
        HesseError: shapes, dtypes or devices that do not match; eigenvectors that are not
            orthonormal, as those of a generalised problem.

    References: Woodbury 1950, Inverting modified matrices, Princeton Statistical Research Group,
        memorandum 42.

    >>> from hesse.operators import identity_operator
    >>> A = low_rank_operator(torch.tensor([[1.0], [1.0]]), torch.tensor([3.0]))
    >>> A @ torch.tensor([1.0, 0.0])
    tensor([3., 3.])
    >>> (A + identity_operator(2))._inverse().to_dense() * 7      # [[4, 3], [3, 4]]^-1
    tensor([[ 4.0000, -3.0000],
            [-3.0000,  4.0000]])
    >>> from hesse.krylov import eigsh
    >>> M = torch.diag(torch.tensor([9.0, 4.0, 1.0]))
    >>> low_rank_operator(eigsh(M, 2))._diagonal().round()         # without the smallest
    tensor([9., 4., 0.])
    """
    given = _factors(U, s, V)
    left, weights = _checked("U", given.U, 2), _checked("s", given.s, 1)
    _check_alike(left, weights, "s", dtypes={left.dtype, torch.float64})
    if given.V is None:
        return LowRankOperator(given.domain or _flat(left), left, weights)
    right = _checked("V", given.V, 2)
    _check_alike(left, right, "V", dtypes={left.dtype})
    domain, codomain = given.domain or _flat(right), given.codomain or _flat(left)
    return LowRankMap(domain, codomain, left, weights, right)


def _factors(U: Any, s: Any, V: Any) -> _Factors:
    """The factors that are given, or those in a result."""
    if not isinstance(U, Result):
        if s is None:
            raise ArgumentError(
                expected="weights s beside U, or the result of hesse.eigsh or hesse.svds",
                got=f"{kind_of(U)} alone",
                remedy="Give low_rank_operator(U, torch.ones(U.shape[1])) for U U'.",
            )
        return _Factors(U, s, V)
    names = U.keys()
    if s is not None or V is not None or not ({"U", "S", "V"} <= {*names} or "vectors" in names):
        raise ArgumentError(
            expected="the result of hesse.eigsh or hesse.svds alone, or factors U and s",
            got=kind_of(U) + ("" if s is None and V is None else " and factors"),
            remedy="Give low_rank_operator(hesse.eigsh(A, k)).",
        )
    domain = getattr(U, "domain", None)
    if "vectors" in names:
        vectors = U["vectors"]
        _check_orthonormal(vectors)
        return _Factors(vectors, U["values"], None, domain)
    return _Factors(U["U"], U["S"], U["V"], domain, getattr(U, "codomain", None))


def _check_orthonormal(vectors: Tensor) -> None:
    eye = torch.eye(vectors.shape[1], dtype=torch.float64, device=vectors.device)
    defect = float(((vectors.T @ vectors).double() - eye).abs().max())
    if not defect <= torch.finfo(vectors.dtype).eps ** 0.5:
        raise ArgumentError(
            expected="orthonormal eigenvectors",
            got=f"vectors V with entries of V'V - I up to {defect:.1e}, as a generalised problem "
            "A u = w B u has them",
            remedy="Give factors: A restricted to these is low_rank_operator(B @ V, values).",
        )


def _flat(factor: Tensor) -> Space:
    return Space.flat(factor.shape[0], factor.dtype, factor.device)


def _checked(name: str, factor: Any, ndim: int) -> Tensor:
    """A copy of a factor of so many dimensions."""
    factor = as_tensor(factor)
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
    return factor.detach().clone()


def _check_alike(U: Tensor, other: Tensor, name: str, *, dtypes: set[torch.dtype]) -> None:
    """Raise unless `other` has an entry or a column for each column of U, and fits it."""
    if other.shape[-1] != U.shape[1]:
        what = "one weight" if other.ndim == 1 else "one column"
        raise ShapeError(
            expected=f"{name} of shape ({'' if other.ndim == 1 else 'm, '}{U.shape[1]}"
            f"{',' if other.ndim == 1 else ''}), {what} a column of U",
            got=f"shape {tuple(other.shape)}",
            remedy="Give U of shape (n, r), s of shape (r,) and V of shape (m, r).",
        )
    if other.dtype not in dtypes:
        raise DtypeError(
            expected=f"{name} of dtype {U.dtype}, like U",
            got=str(other.dtype),
            remedy=f"Convert it: {name}.to({U.dtype}).",
        )
    if U.device != other.device:
        raise DeviceError(
            expected=f"{name} on {U.device}, like U",
            got=str(other.device),
            remedy=f"Move it: {name}.to('{U.device}').",
        )
