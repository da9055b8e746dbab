# SPDX-License-Identifier: Apache-2.0
"""`eigsh`: eigenpairs at the ends of the spectrum, in bounded memory."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hesse.checkpoint import Checkpoint, FilePath, generator_for
from hesse.errors import ArgumentError, check_choice, check_tolerances
from hesse.krylov.basis import Basis
from hesse.krylov.eigenpairs import Eigenpairs, Wanted, Which
from hesse.krylov.lanczos import Lanczos, unit_roundoff
from hesse.krylov.lobpcg import Lobpcg
from hesse.krylov.preconditioners import as_preconditioner
from hesse.krylov.thick_restart import ThickRestart
from hesse.operators.base import LinearOperator
from hesse.operators.dense import aslinearoperator
from hesse.operators.memory_budget import parse_bytes
from hesse.progress import Callback, Run
from hesse.vectors import Tree, gaussian


def eigsh(
    A: LinearOperator | Tensor,
    k: int = 6,
    which: Which = "LA",
    *,
    B: LinearOperator | Tensor | None = None,
    method: Literal["auto", "lanczos", "lobpcg"] = "auto",
    preconditioner: LinearOperator | Tensor | str | None = None,
    rtol: float | None = None,
    v0: Tree | None = None,
    block_size: int | None = None,
    search_missed: bool = True,
    basis_size: int | None = None,
    basis_dtype: torch.dtype | None = None,
    basis_device: torch.device | str | None = None,
    memory_budget: int | float | str | None = None,
    max_products: int | None = None,
    max_seconds: float | None = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    checkpoint: FilePath = None,
) -> Eigenpairs:
    r"""k eigenpairs at the ends of the spectrum of a symmetric operator.

    $$ A V_m = V_m T_m + \beta_m v_{m+1} e_m^T, \qquad T_m s = \theta s, \quad u = V_m s, \quad
       \lVert A u - \theta u \rVert = \beta_m |s_m| $$

    Two methods. "lanczos" builds a Krylov basis and restarts it thickly. "lobpcg" improves a block
    of vectors with a preconditioner; it also solves A u = theta B u. "auto" takes it where there is
    a preconditioner or a B.

    Args:
        A: symmetric operator (or matrix), n x n.
        k: how many, 1 <= k <= n.
        which: "LA" largest, "SA" smallest, "LM" largest in magnitude, "BE" both ends (the odd one
            from the high end); lobpcg has the first two.
        B: symmetric positive definite operator (or matrix); the vectors are then B-orthonormal.
        method: "auto", "lanczos" or "lobpcg".
        preconditioner: of lobpcg, an approximation of the inverse of A, or its name, as in `solve`.
        rtol: converged when the residual is at most rtol |theta|, or at the rounding level of the
            products, 16 eps |A|. Default: the square root of eps, which makes the error of a
            well-separated eigenvalue, quadratic in the residual, about eps.
        v0: where to start: a vector, flat or a tree, or a block (n, j), such as the `vectors` of an
            operator close to this one; default random.
        block_size: products taken at once; eigenvalues are found with a multiplicity up to it
            without a search. Default 1, or the columns of v0; of lobpcg about 1.2 k.
        search_missed: of lanczos, look for eigenvalues that the start could not see, such as those
            of a multiplicity beyond the block: 4 products more (times the block) where wanted
            eigenvalues stand out, up to as many again where they do not, and up to 40 with v0.
            Switched off, a multiplicity may be silently too small.
        basis_size: vectors kept by lanczos, m > k; default max(2k + 10, 30), or what the budget
            allows.
        basis_dtype, basis_device: where the basis of lanczos lives, if not with the vectors: the
            host, or a lower precision, which then limits the accuracy.
        memory_budget: bytes, or a text such as "1GB", for the basis and all other vectors. What a
            product needs within the operator comes on top.
        max_products, max_seconds: limits; default 100 m products.
        generator: of the starting vector and of new directions.
        callback: called after every step with a state that has `values`, `residuals` and
            `products`; a true result stops.
        progress: show a bar.
        checkpoint: path of a file, from which the same call goes on, to the same bits, after it was
            killed (see `hesse.checkpoint`; one product more to recognise A). Of lanczos.

    Returns:
        Eigenpairs. Pairs that did not converge are returned with the residual they have, and
        `status` says why. Ctrl-C returns the best so far.

    Cost: lanczos one product a step, and one at the end that verifies all residuals at once; m + b
        vectors and max(k + 3, 2b) more, where b is the block. If it does not verify them, or the
        basis is in lower precision, k products more, and max(2k + 4, 2b) vectors. lobpcg one
        product a step for every vector of the block that has not converged; 7 vectors for each
        of the block, 10 with B.

    Raises:
        HesseError: A not symmetric; k or m out of range; NaN; a budget too small.

    References: Wu & Simon 2000, doi:10.1137/S0895479898334605 (thick restart); Ruhe 1979,
        doi:10.1090/S0025-5718-1979-0521282-9 (bands); Knyazev 2001,
        doi:10.1137/S1064827500366124 (LOBPCG); Parlett 1998, ch. 11 (the bound).

    >>> pairs = eigsh(torch.diag(torch.tensor([1.0, 2.0, 4.0])), 2)
    >>> pairs.values
    tensor([2.0000, 4.0000], dtype=torch.float64)
    """
    A = aslinearoperator(A)
    call = f"hesse.eigsh({A}, k={k}, which={which!r})"
    _check_arguments(A, k, which, call)
    check_choice("method", method, ["auto", "lanczos", "lobpcg"], call)
    check_tolerances(call, rtol=rtol)
    if method == "auto":
        method = "lanczos" if B is None and preconditioner is None else "lobpcg"
    generator = generator_for(generator, checkpoint)
    start = _start(A, v0, k, block_size, generator, call)
    run = Run(
        f"eigsh {which}",
        max_products=max_products,
        max_seconds=max_seconds,
        callback=callback,
        progress=progress,
        reserved=1 if method == "lanczos" else k,
    )
    if method == "lobpcg":
        _refuse("lanczos", call, checkpoint=checkpoint, basis_dtype=basis_dtype)
        wanted = Wanted(k, which, _accuracy(rtol, unit_roundoff(A)), unit_roundoff(A))
        M = as_preconditioner(preconditioner, A, generator, call)
        mass = None if B is None else aslinearoperator(B)._in_space(A.domain)
        iteration = Lobpcg(A, wanted, start, B=mass, M=M, generator=generator)
        del start  # the iteration has it now
        return iteration.solve(run)
    _refuse("lobpcg", call, B=B, preconditioner=preconditioner)
    room = None if memory_budget is None else parse_bytes(memory_budget, call)
    m = _basis_size(A, k, start.shape[1], basis_size, basis_dtype, room, call)
    A.expect(m)
    if max_products is None:
        run.max_products = 100 * m
    basis = Basis(A, m + start.shape[1], basis_dtype, basis_device)
    wanted = Wanted(k, which, _accuracy(rtol, basis.eps), basis.eps)
    question = {"k": k, "which": which, "rtol": wanted.rtol, "m": m, "search": search_missed}
    file = Checkpoint(checkpoint, A, call="eigsh", **question, block=start.shape[1])
    lanczos = Lanczos(A, m, start, generator, basis)
    del start  # the basis has it now
    keep = min(k + (m - k) // 2, m - 1) if m < A.shape[0] else m
    at_once = k if room is None else lanczos.b
    return ThickRestart(wanted, m, keep, search_missed, v0 is not None).solve(
        lanczos, run, file, at_once
    )


def _accuracy(rtol: float | None, eps: float) -> float:
    return float(eps**0.5 if rtol is None else rtol)


def _start(
    A: LinearOperator,
    v0: Tree | None,
    k: int,
    block_size: int | None,
    generator: torch.Generator | None,
    call: str,
) -> Tensor:
    """The starting block, shape (n, b)."""
    given = A.domain.zeros()[:, None][:, :0]
    if isinstance(v0, Tensor) and v0.ndim == 2 and not A.domain.is_point(v0):
        given = A.domain.check_vector(v0, call=call, what="v0", ndim=2).detach()
    elif v0 is not None:
        given = A.domain.enter(v0, call=call, what="v0")[0][:, None]
    b = max(1, given.shape[1]) if block_size is None else block_size
    if not max(1, given.shape[1]) <= b <= A.shape[0]:
        raise ArgumentError(
            call,
            expected=f"block_size from {max(1, given.shape[1])} to {A.shape[0]}",
            got=str(b),
            remedy="Leave it out for a block like v0, or for a single vector.",
        )
    if b == 1 and given.shape[1] == 0:
        return gaussian(A.domain, generator)[:, None]
    more = [gaussian(A.domain, generator) for _ in range(b - given.shape[1])]
    return torch.stack([*given.T, *more], dim=1)


def _basis_size(
    A: LinearOperator,
    k: int,
    b: int,
    size: int | None,
    dtype: torch.dtype | None,
    room: int | None,
    call: str,
) -> int:
    """Vectors that are kept, at most n."""
    n, usual = A.shape[0], max(2 * k + 10, 30) + 2 * (b - 1)
    m = usual if size is None else size
    if room is not None:
        work = max(k + b + 4, 2 * b) * n * A.dtype.itemsize
        row = n * (A.dtype if dtype is None else dtype).itemsize
        fits, least = (room - work) // row - b, min(k + b, n)
        if fits < least:
            need = (least + b) * row + work
            raise ArgumentError(
                call,
                expected=f"a memory budget of at least {need:,} bytes for {least} basis vectors",
                got=f"{room:,} bytes",
                remedy="Raise memory_budget, ask for fewer pairs, or give basis_dtype.",
            )
        m = min(m, fits)
    if m < min(k + b, n):
        raise ArgumentError(
            call,
            expected=f"basis_size >= k + block_size = {k + b}",
            got=str(m),
            remedy="Leave it out for max(2k + 10, 30).",
        )
    return min(m, n)


def _refuse(method: str, call: str, **given: object) -> None:
    """Raise if one of these arguments, which belong to the other method, was given."""
    for name, value in given.items():
        if value is not None:
            raise ArgumentError(
                call,
                expected=f"{name} only with method={method!r}",
                got="it with the other method",
                remedy=f"Leave it out, or take method={method!r}.",
            )


def _check_arguments(A: LinearOperator, k: int, which: str, call: str) -> None:
    A._check_symmetric(call, "Pass symmetric=True if A = A'; for singular values use hesse.svds.")
    check_choice("which", which, ["LA", "SA", "LM", "BE"], call)
    if not 1 <= k <= A.shape[0]:
        raise ArgumentError(
            call,
            expected=f"1 <= k <= n = {A.shape[0]}",
            got=f"k = {k}",
            remedy="Ask for fewer pairs.",
        )
