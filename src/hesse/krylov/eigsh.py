# SPDX-License-Identifier: Apache-2.0
"""`eigsh`: eigenpairs at the ends of the spectrum, in bounded memory."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.checkpoint import FilePath, generator_for
from hesse.errors import (
    ArgumentError,
    check_choice,
    check_count,
    check_not_empty,
    check_tolerances,
)
from hesse.krylov.eigen_problem import EigenMethod, EigenProblem
from hesse.krylov.eigenpairs import Eigenpairs, Which
from hesse.krylov.extreme import with_usual_products
from hesse.krylov.lanczos import Lanczos
from hesse.krylov.lobpcg import LOBPCG
from hesse.krylov.starting_block import given_block
from hesse.memory.sizes import parse_bytes
from hesse.methods import find_method
from hesse.operators.algebra import LinearOperator
from hesse.operators.checks import PROMISE, check_symmetric
from hesse.operators.dense import aslinearoperator
from hesse.progress import Callback, Run
from hesse.ranks import share_run_of
from hesse.vectors.space import Tree

_METHODS: dict[str, EigenMethod] = {method.name: method for method in (Lanczos(), LOBPCG())}


@public("hesse.eigsh({A}, k={k}, which={which}, method={method})")
def eigsh(
    A: LinearOperator | Tensor,
    k: int = 6,
    which: Which = "LA",
    *,
    B: LinearOperator | Tensor | None = None,
    method: Literal["auto", "lanczos", "lobpcg"] | EigenMethod = "auto",
    v0: Tree | None = None,
    rtol: float | None = None,
    max_products: int | None = None,
    max_seconds: float | None = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    checkpoint: FilePath = None,
    memory_budget: int | float | str | None = None,
) -> Eigenpairs:
    r"""k eigenpairs at the ends of the spectrum of a symmetric operator.

    $$ A u = \theta u, \quad \text{or} \quad A u = \theta B u $$

    "lanczos", or `Lanczos(...)`, builds a Krylov basis and restarts it thickly. "lobpcg", or
    `LOBPCG(...)`, improves a block of vectors with a preconditioner; it also takes a B. "auto" is
    "lanczos", or "lobpcg" where there is a B.

    Args:
        A: symmetric operator (or matrix), n x n.
        k: how many, 1 <= k <= n.
        which: "LA" largest, "SA" smallest, "LM" largest in magnitude, "BE" both ends (the odd one
            from the high end); lobpcg has the first two.
        B: symmetric positive definite operator (or matrix); the vectors are then B-orthonormal. A
            B that is singular to rounding, or indefinite, is refused where that shows.
        method: an object with the options of a method, or a name for the default options.
        v0: where to start: a vector, flat or a tree, or a block (n, j), such as the `vectors` of an
            operator close to this one; default random.
        rtol: converged when the residual is at most rtol |theta|, or at the rounding level of the
            products: 16 eps |A|, or more where their error shows. Default: the square root of eps,
            which makes the error of a well-separated eigenvalue, quadratic in the residual, about
            eps.
        max_products, max_seconds: limits; default 100 m products, or 200 max(2k + 10, 30) with
            lobpcg. Within too few for k pairs there may be fewer pairs, or some whose residuals
            could not be verified and are infinite.
        generator: of the starting vector and of new directions.
        callback: called after every step with a state that has `values`, `residuals` and
            `products`; a true result stops.
        progress: show a bar.
        checkpoint: path of a file, from which the same call continues, to the same bits, after it
            was killed (see `hesse.checkpoint`; one product more to recognise A). Of lanczos.
        memory_budget: of lanczos, bytes, or a text such as "1GB", for the basis and all other
            vectors. What a product needs within the operator comes on top.

    Returns:
        Eigenpairs. Pairs that did not converge are returned with the residual they have, and
        `status` says why. `unseen` bounds the probability that a wanted eigenvalue is missing.
        Ctrl-C returns the best so far.

    Cost: lanczos one product a step, and one at the end; lobpcg one product a step for every vector
        that has not converged. Vectors: see `Lanczos` and `LOBPCG`.

    Raises:
        HesseError: A not symmetric; B not positive definite; k or m out of range; NaN; a budget
            too small.

    References: see `Lanczos` and `LOBPCG`.

    >>> pairs = eigsh(torch.diag(torch.tensor([1.0, 2.0, 4.0])), 2)
    >>> pairs.values
    tensor([2.0000, 4.0000], dtype=torch.float64)
    """
    A = aslinearoperator(A)
    check_not_empty(A.shape)
    k = check_count("k", k, 1)
    check_symmetric(A, f"{PROMISE} For singular values use hesse.svds.")
    check_choice("which", which, ["LA", "SA", "LM", "BE"])
    if k > A.domain.n:
        raise ArgumentError(
            expected=f"1 <= k <= n = {A.domain.n}",
            got=f"k = {k}",
            remedy="Ask for fewer pairs.",
        )
    if rtol is not None:
        check_tolerances(rtol=rtol)
    auto = _METHODS["lanczos" if B is None else "lobpcg"]
    chosen = find_method(method, {"auto": auto, **_METHODS}, "find_pairs")
    run = Run(
        f"eigsh {which}",
        max_products=max_products,
        max_seconds=max_seconds,
        callback=callback,
        progress=progress,
        checkpoint=checkpoint,
    )
    share_run_of(run, A.domain.ranks)
    mass = None if B is None else aslinearoperator(B)._in_space(A.domain)
    budget = None if memory_budget is None else parse_bytes(memory_budget)
    generator = generator_for(generator, checkpoint, A.domain)
    A.domain.check_finite(given_block(A, v0), "v0")

    def find(scaled: LinearOperator, scale: float, lost: int) -> Eigenpairs:
        run.max_products -= lost
        given = given_block(A, v0)
        problem = EigenProblem(scaled, k, which, rtol, mass, given, generator, budget, run)
        del given  # the method may release it
        pairs = chosen.find_pairs(problem)
        return pairs if scale == 1.0 else pairs.scaled(1.0 / scale, lost)

    found = with_usual_products(A, find)
    found.domain = A.domain
    return found
