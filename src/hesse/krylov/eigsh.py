# SPDX-License-Identifier: Apache-2.0
"""`eigsh`: eigenpairs at the ends of the spectrum, in bounded memory."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.checkpoint import Checkpoint, FilePath, generator_for
from hesse.errors import (
    ArgumentError,
    Status,
    check_choice,
    check_count,
    check_flags,
    check_tolerances,
)
from hesse.krylov.basis import Basis
from hesse.krylov.basis_size import check_home, choose_basis_size
from hesse.krylov.eigenpairs import Eigenpairs, Wanted, Which
from hesse.krylov.lanczos import Lanczos, unit_roundoff
from hesse.krylov.lobpcg import Lobpcg, affordable, block_size_of
from hesse.krylov.preconditioners import as_preconditioner
from hesse.krylov.starting_block import given_block, starting_block
from hesse.krylov.thick_restart import ThickRestart
from hesse.memory.sizes import parse_bytes
from hesse.operators.algebra import LinearOperator
from hesse.operators.dense import aslinearoperator
from hesse.progress import Callback, Run
from hesse.vectors.space import Tree, check_finite


@public("hesse.eigsh({A})")
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
            eigenvalues stand out, 8 more while one may yet show, up to as many again as there were
            where they do not stand out, and up to 40 with v0.
            Switched off, a multiplicity may be silently too small; a copy that four steps overlook,
            seldom but for large n, a block of two sees.
        basis_size: vectors kept by lanczos, m > k; default max(2k + 10, 30), or what the budget
            allows.
        basis_dtype, basis_device: where the basis of lanczos lives, if not with the vectors: the
            host, or a lower precision, which then limits the accuracy.
        memory_budget: of lanczos, bytes, or a text such as "1GB", for the basis and all other
            vectors. What a product needs within the operator comes on top.
        max_products, max_seconds: limits; default 100 m products. Within too few for k pairs there
            may be fewer pairs, or some whose residuals could not be verified and are infinite.
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
    call = f"hesse.eigsh({A}, k={k!r}, which={which!r})"
    k = check_count("k", k, 1, call)
    _check_arguments(A, k, which, call)
    check_choice("method", method, ["auto", "lanczos", "lobpcg"], call)
    check_flags(call, search_missed=search_missed)
    if rtol is not None:
        check_tolerances(call, rtol=rtol)
    if method == "auto":
        method = "lanczos" if B is None and preconditioner is None else "lobpcg"
    generator = generator_for(generator, checkpoint)
    given = check_finite("v0", given_block(A, v0, call), call)
    start = starting_block(A, given, block_size, generator, call)
    b = start.shape[1]
    run = Run(
        f"eigsh {which}",
        max_products=max_products,
        max_seconds=max_seconds,
        callback=callback,
        progress=progress,
    )
    if method == "lobpcg":
        basis = {"basis_size": basis_size, "basis_dtype": basis_dtype, "basis_device": basis_device}
        _refuse("lanczos", call, checkpoint=checkpoint, memory_budget=memory_budget, **basis)
        M = as_preconditioner(preconditioner, A, generator, call, run.left())
        run.before = built = 0 if M is None else M.products
        few = affordable(k, b, A.shape[0], run, call)
        # What the end takes, and a step that takes new products of the block as well.
        run.reserved = few + 2 * block_size_of(few, b, A.shape[0]) - 1
        wanted = Wanted(few, which, _accuracy(rtol, unit_roundoff(A)), unit_roundoff(A))
        mass = None if B is None else aslinearoperator(B)._in_space(A.domain)
        iteration = Lobpcg(A, wanted, start, B=mass, M=M, generator=generator)
        del start, given  # the iteration has them now
        pairs = iteration.solve(run)
        status = pairs.status if few == k else Status.MAX_PRODUCTS
        return Eigenpairs(*pairs[:4], pairs.products + built, status)
    _refuse("lobpcg", call, B=B, preconditioner=preconditioner)
    room = None if memory_budget is None else parse_bytes(memory_budget, call)
    check_home(basis_dtype, basis_device, call)
    m = choose_basis_size(A, k, b, basis_size, basis_dtype, room, call)
    A.announce(m)
    run.require(b + 1, call, "a step and a look at the end take")
    basis = Basis(A, m + b, basis_dtype, basis_device)
    # The looks at the end, and all but one of a block.
    run.reserved = b if basis.is_exact else b + k
    if max_products is None:
        run.max_products = 100 * m + run.reserved
    wanted = Wanted(k, which, _accuracy(rtol, basis.eps), basis.eps)
    question = {"k": k, "which": which, "rtol": wanted.rtol, "m": m, "search": search_missed}
    question["v0"] = given if given.shape[1] else None
    file = Checkpoint(checkpoint, A, call="eigsh", **question, block=b)
    lanczos = Lanczos(A, m, start, generator, basis)
    del start, given  # the basis has them now
    keep = min(k + (m - k) // 2, m - 1) if m < A.shape[0] else m
    at_once = k if room is None else lanczos.b
    return ThickRestart(wanted, m, keep, search_missed, v0 is not None).solve(
        lanczos, run, file, at_once
    )


def _accuracy(rtol: float | None, eps: float) -> float:
    return float(eps**0.5 if rtol is None else rtol)


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
    if k > A.shape[0]:
        raise ArgumentError(
            call,
            expected=f"1 <= k <= n = {A.shape[0]}",
            got=f"k = {k}",
            remedy="Ask for fewer pairs.",
        )
