# SPDX-License-Identifier: Apache-2.0
"""Eigenpairs at the ends of the spectrum by the Lanczos method with thick restarts.

When the basis is full, the best Ritz vectors are kept and the iteration goes on from them: memory
is bounded whatever the accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hesse.errors import ArgumentError, OperatorError
from hesse.krylov.lanczos import Lanczos, unit_roundoff
from hesse.operators.base import LinearOperator
from hesse.operators.dense import aslinearoperator
from hesse.progress import Callback, asks_to_stop, progress_bar
from hesse.vectors import Tree, gaussian, norm

Which = Literal["LA", "SA", "LM", "BE"]


class Eigenpairs(NamedTuple):
    """(values, vectors, residuals, converged, products), values ascending."""

    values: Tensor
    """Eigenvalues, shape (k,), float64, ascending."""
    vectors: Tensor
    """Orthonormal eigenvectors, shape (n, k): column i belongs to values[i]."""
    residuals: Tensor
    """|A u - theta u|, recomputed, shape (k,): an eigenvalue of A lies within this of values[i]."""
    converged: Tensor
    """Whether each pair met its tolerance, shape (k,), bool."""
    products: int
    """Products with A."""


@dataclass
class LanczosState:
    """What a callback sees at every restart."""

    values: Tensor
    residuals: Tensor
    products: int


def eigsh(
    A: LinearOperator | Tensor,
    k: int = 6,
    which: Which = "LA",
    *,
    rtol: float | None = None,
    v0: Tree | None = None,
    basis_size: int | None = None,
    max_products: int | None = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    progress: bool = False,
) -> Eigenpairs:
    r"""k eigenpairs at the ends of the spectrum of a symmetric operator.

    $$ A V_m = V_m T_m + \beta_m v_{m+1} e_m^T, \qquad T_m s = \theta s, \quad u = V_m s, \quad
       \lVert A u - \theta u \rVert = \beta_m |s_m| $$

    Args:
        A: symmetric operator (or matrix), n x n.
        k: how many, 1 <= k <= n.
        which: "LA" largest, "SA" smallest, "LM" largest in magnitude, "BE" both ends (the odd one
            from the high end).
        rtol: converged when the residual is at most rtol |theta|, or at the rounding level of the
            products, 16 eps |A|. Default: the square root of eps, which makes the error of a
            well-separated eigenvalue, quadratic in the residual, about eps.
        v0: starting vector, flat or a tree; default random.
        basis_size: vectors kept, m > k; default max(2k + 10, 30).
        max_products: default 100 m.
        generator: of the starting vector and of new directions in an invariant subspace.
        callback: called with a `LanczosState` at every restart; a true result stops.
        progress: show a bar.

    Returns:
        Eigenpairs. Pairs that did not converge are returned with the residual they have. Ctrl-C
        returns the best so far.

    Cost: one product a step, and k at the end to recompute the residuals; m + 1 vectors.

    Raises:
        HesseError: A not symmetric; k or m out of range; NaN.

    References: Wu & Simon 2000, doi:10.1137/S0895479898334605 (thick restart); Parlett 1998, ch. 11
        (the bound).

    >>> pairs = eigsh(torch.diag(torch.tensor([1.0, 2.0, 4.0])), 2)
    >>> pairs.values
    tensor([2.0000, 4.0000], dtype=torch.float64)
    """
    A = aslinearoperator(A)
    m = _check_arguments(A, k, which, basis_size)
    A.expect(2 * m)
    limit = 100 * m if max_products is None else max_products
    lanczos = Lanczos(A, m, _starting_vector(A, v0, generator), generator)
    rtol = float(unit_roundoff(A) ** 0.5 if rtol is None else rtol)
    keep = min(k + (m - k) // 2, m - 1) if m < A.shape[0] else m
    with progress_bar(progress, f"eigsh {which}", limit) as bar:
        try:
            while True:
                lanczos.extend(min(m, lanczos.size + limit - lanczos.products), bar)
                values, vectors, residuals = lanczos.ritz()
                best = _select(values, k, which)
                tolerance = _tolerance(values, rtol, unit_roundoff(A))
                state = LanczosState(values[best], residuals[best], lanczos.products)
                if bool((residuals[best] <= tolerance[best]).all()):
                    break
                if lanczos.products >= limit or lanczos.size < m or asks_to_stop(callback, state):
                    break
                lanczos.restart(vectors, values, _select(values, keep, which))
        except KeyboardInterrupt:
            pass  # the best so far, as documented
    return _recomputed(A, lanczos, k, which, rtol)


def _recomputed(A: LinearOperator, lanczos: Lanczos, k: int, which: str, rtol: float) -> Eigenpairs:
    """The wanted pairs with Rayleigh quotients and residuals of their own, not the recurrence's."""
    values, coordinates, _ = lanczos.ritz()
    tolerance = _tolerance(values, rtol, unit_roundoff(A))
    best = _select(values, min(k, len(values)), which)
    rows = lanczos.combine(coordinates[:, best])
    rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    products = A._matmat(rows.T).T
    theta = torch.tensor(
        [A.inner(u, Au) for u, Au in zip(rows, products, strict=True)], dtype=torch.float64
    )
    residuals = torch.tensor(
        [norm(Au - t * u) for u, Au, t in zip(rows, products, theta.tolist(), strict=True)],
        dtype=torch.float64,
    )
    order = theta.argsort()
    return Eigenpairs(
        values=theta[order],
        vectors=rows[order].T.contiguous(),
        residuals=residuals[order],
        converged=(residuals <= tolerance[best])[order],
        products=lanczos.products + len(theta),
    )


def _select(values: Tensor, k: int, which: str) -> Tensor:
    """Indices of the k wanted among ascending values, ascending."""
    last = len(values)
    if which == "LM":
        return values.abs().argsort()[last - k :].sort().values
    low = {"LA": 0, "SA": k, "BE": k // 2}[which]
    return torch.cat([torch.arange(low), torch.arange(last - (k - low), last)])


def _tolerance(values: Tensor, rtol: float, eps: float) -> Tensor:
    return torch.clamp(rtol * values.abs(), min=float(16 * eps * values.abs().max()))


def _starting_vector(
    A: LinearOperator, v0: Tree | None, generator: torch.Generator | None
) -> Tensor:
    if v0 is None:
        return gaussian(A.domain, generator)
    start, _ = A.domain.enter(v0, call=f"hesse.eigsh({A}, k, v0)", what="v0")
    return start if bool(start.any()) else gaussian(A.domain, generator)


def _check_arguments(A: LinearOperator, k: int, which: str, basis_size: int | None) -> int:
    """The size of the basis, after making sure that the arguments fit the operator."""
    call, n = f"hesse.eigsh({A}, k={k}, which={which!r})", A.shape[0]
    if not A.symmetric:
        raise OperatorError(
            call,
            expected="a symmetric operator",
            got="one that is not known to be symmetric",
            remedy="Pass symmetric=True if A = A'; for singular values use A.T @ A.",
        )
    if which not in ("LA", "SA", "LM", "BE"):
        raise ArgumentError(
            call, expected="which 'LA', 'SA', 'LM' or 'BE'", got=repr(which), remedy="See its help."
        )
    if not 1 <= k <= n:
        raise ArgumentError(
            call, expected=f"1 <= k <= n = {n}", got=f"k = {k}", remedy="Ask for fewer pairs."
        )
    m = max(2 * k + 10, 30) if basis_size is None else basis_size
    if m <= k and m < n:
        raise ArgumentError(
            call,
            expected=f"basis_size > k = {k}",
            got=str(m),
            remedy="Leave it out for max(2k + 10, 30).",
        )
    return min(m, n)
