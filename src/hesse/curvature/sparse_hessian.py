# SPDX-License-Identifier: Apache-2.0
"""`sparse_hessian_operator`: a sparse Hessian as a matrix, from a few products."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from hesse.ad.composing import Composing
from hesse.boundary import public
from hesse.curvature.hessian import HessianDefinition
from hesse.curvature.memory_budget import within_budget
from hesse.curvature.point import point_of
from hesse.engine.options import ProductOptions
from hesse.errors import MissingExtraError, check_choice
from hesse.risk.risk import Risk
from hesse.risk.sharing import check_is_whole
from hesse.vectors.space import Tree

if TYPE_CHECKING:
    from hesse.curvature.sparse import SparseHessian

_COLOURINGS = ["auto", "distance-2", "star", "acyclic"]
_MODES = ["auto", "compiled-split", "traced-split"]


@public("hesse.sparse_hessian_operator(f, x)")
def sparse_hessian_operator(
    f: Callable[[Any], Tensor],
    x: Tree | None = None,
    *,
    colouring: Literal["auto", "distance-2", "star", "acyclic"] = "auto",
    pattern: Any = None,
    mode: Literal["auto", "compiled-split", "traced-split"] = "auto",
) -> SparseHessian:
    r"""The Hessian of f at x as a sparse matrix, found from a few products.

    $$ H_{ij} = (H s_c)_i, \qquad s_c = \sum_{k \text{ of colour } c} e_k, \qquad
       j \text{ the only neighbour of } i \text{ of colour } c $$

    f is a sum of terms of few variables each: over the cells of a grid, the elements of a mesh, the
    links of a chain. The pattern is found in the trace of the product, whose operations say which
    entries of v each number depends on. The variables are coloured so that every entry is alone in
    a row of one of the products H s_c. These are taken as one block, and a gather picks the entries
    out of it. Where the product is made of sums, factors and moved entries only, a program computes
    the entries without directions, in less time.

    Args:
        f: scalar function of one argument; a `Risk` is one, if few of its parameters interact.
        x: the point, a tensor or a tree, as in `hessian_operator`.
        colouring: "distance-2" (no neighbours of a variable share a colour), "star" (fewer colours
            on many grids; each entry is alone on one side of the diagonal), or "auto", the better
            one of these; "acyclic" takes the fewest products, and entries are differences of
            others, whose rounding adds up along chains.
        pattern: where entries can be, a sparse matrix of SciPy or an array, for an f with
            operations that the detection does not know. It is checked by a product.
        mode: "traced-split", "compiled-split" (about ten seconds of compiling for products, and as
            many for a program of the entries), or "auto", which compiles when they have taken so
            long that it pays.

    Returns:
        An operator S of all entries. `S @ v`; `S.at(x)` is the same at another point, where
        programs, pattern and colouring serve again; `S.to_scipy()` gives the matrix;
        `hesse.solve(S, b)` factorises it, and `S.inertia` counts its negative eigenvalues.
        `S.value`, `S.gradient`, `S.num_products`, `S.cost`, `S.is_local`.

    Cost: one trace, a pass over the trace on sparse matrices, a colouring in Python (a microsecond
        an entry) unless a program gives the entries, then `S.cost` products a point, at most
        `S.num_products`, and one more at the 1st, 2nd, 4th, 8th ... point, to compare with. Memory:
        the products, n numbers each, while entries are picked, or four bytes for each number that a
        program adds or moves.
        A product with S reads its entries. Needs the extra hesse[scipy].

    Raises:
        HesseError: an operation whose sparsity is not known, which is named; a Hessian that is not
            sparse; an f that cannot be traced; SciPy is not installed; as `hessian_operator`.

    References: Walther 2008, doi:10.1145/1322436.1322439 (patterns by differentiation); Coleman &
        Moré 1984, doi:10.1007/BF02612334; Gebremedhin, Tarafdar, Pothen & Walther 2009,
        doi:10.1287/ijoc.1080.0286 (colourings); Hill & Dalle 2025, arXiv:2501.17737.

    >>> import torch
    >>> S = sparse_hessian_operator(lambda x: (x[1:] - x[:-1]).square().sum() / 2, torch.zeros(4))
    >>> S.to_dense()
    tensor([[ 1., -1.,  0.,  0.],
            [-1.,  2., -1.,  0.],
            [ 0., -1.,  2., -1.],
            [ 0.,  0., -1.,  1.]])
    >>> S
    SparseHessian(4 x 4, torch.float32)
      entries   10, 2.5 in a row
      products  3 instead of 4 (distance-2)
      pattern   the same at every point
      ⠻⣦
    """
    check_choice("colouring", colouring, _COLOURINGS)
    check_choice("mode", mode, _MODES)
    try:
        from hesse.curvature.sparse_maker import Maker
    except ImportError as error:
        raise MissingExtraError(
            expected="SciPy, whose sparse matrices hold the pattern and the entries",
            got=str(error),
            remedy="pip install 'hesse[scipy]'",
        ) from error
    if isinstance(f, Risk):
        check_is_whole(f)
    function = None if hasattr(f, "summands") else Composing
    options = ProductOptions(mode)
    H = within_budget(HessianDefinition(), f, point_of(f, x), options, None, function=function)
    return Maker(colouring, pattern).make(H)
