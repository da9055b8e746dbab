# SPDX-License-Identifier: Apache-2.0
"""`check_operator`: is an operator what every solver takes it for?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.errors import OperatorError
from hesse.operators import LinearOperator, aslinearoperator
from hesse.result import Result
from hesse.vectors.space import Space

DENSE_LIMIT = 32
"""Operators of at most so many columns are compared with their dense matrix."""


@dataclass(frozen=True, repr=False)
class Conformance(Result):
    """The measured defects, relative to the size of the products.

    All are at most `tolerance`; rounding gives a few units of 1e-16 in float64, of 1e-7 in float32.
    None stands for a check that does not apply.
    """

    tolerance: float
    """What was allowed."""
    determinism: float
    """A v twice."""
    linearity: float
    """A (a u + b v) - a A u - b A v."""
    symmetry: float | None
    """<A u, v> - <u, A v>, for an operator tagged symmetric."""
    adjoint: float | None
    """<A u, w> - <u, A' w>, for one that is not and has an adjoint."""
    matmat: float
    """A V, column by column."""
    tree: float | None
    """The product with a tree, against that with its flat vector."""
    curvature: float | None
    """v' A v, for a square operator."""
    dense: float | None
    """The dense matrix, for an operator of at most 32 columns."""


@public("hesse.testing.check_operator({A})")
def check_operator(
    A: LinearOperator, *, generator: torch.Generator | None = None, rtol: float | None = None
) -> Conformance:
    """Check that A is linear, symmetric if it says so, deterministic, and consistent with itself.

    In order: the inner product is symmetric and positive; every product is a finite tensor of the
    right shape, dtype and device, without a graph, and leaves its input alone; two products with
    one vector agree; the product is linear; <A u, v> = <u, A v> if A is tagged symmetric, else
    <A u, w> = <u, A' w> if A has an adjoint; `matmat`, products with trees, `curvature` and
    `to_dense` agree with `matvec`.

    Args:
        A: the operator, or a matrix.
        generator: source of the Gaussian probes; by default one with a fixed seed.
        rtol: largest relative defect; by default sqrt(eps) of the least precise dtype of A's
            vectors (1.5e-8 in float64), half of the digits: well above the rounding of a product,
            well below the effect of a mistake. A product by finite differences may need more.

    Returns:
        The defects, a `Conformance`.

    Cost: 8 products for a square operator on trees; one fewer on flat vectors, one fewer if it is
        not square, one more for an adjoint; n more if n <= 32.

    Raises:
        OperatorError: at the first check that fails.
        HesseError: whatever a product itself raises, such as NonFiniteError.

    >>> check_operator(torch.tensor([[2.0, 1.0], [1.0, 2.0]])).symmetry < 1e-6
    True
    >>> from hesse.operators import function_operator
    >>> check_operator(function_operator(lambda v: v.abs(), 3))
    Traceback (most recent call last):
        ...
    hesse.errors.OperatorError: hesse.testing.check_operator(FunctionOperator(3 x 3, torch.float32))
      expected: a linear product, A (a u + b v) = a A u + b A v
      got:      a relative difference of ..., where 0.0003 is allowed
      remedy:   Look for an affine term, a norm of v, a clamp, or a step that does not scale ...
    """
    return _Checks(aslinearoperator(A), generator, rtol).run()


class _Checks:
    """The checks of one operator, and the probes and products that they share."""

    def __init__(
        self, A: LinearOperator, generator: torch.Generator | None, rtol: float | None
    ) -> None:
        self.A = A
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        # Leaves of lower precision round what passes through them.
        eps = max(torch.finfo(dtype).eps for dtype in A.domain.dtypes + A.codomain.dtypes)
        self.rtol = math.sqrt(eps) if rtol is None else rtol
        self.u, self.v = A.domain.gaussian(generator), A.domain.gaussian(generator)
        self.w = A.codomain.gaussian(generator)
        self.square = A.shape[0] == A.shape[1]

    def run(self) -> Conformance:
        """Every check, cheap and fundamental ones first."""
        A = self.A
        self._check_inner()
        self.Au, self.Av = self._matvec(self.u), self._matvec(self.v)
        return Conformance(
            tolerance=self.rtol,
            determinism=self._determinism(),
            linearity=self._linearity(),
            symmetry=self._symmetry() if A.symmetric else None,
            adjoint=None if A.symmetric else self._adjoint(),
            matmat=self._matmat(),
            tree=None if A.domain.is_flat and A.codomain.is_flat else self._tree(),
            curvature=self._curvature() if self.square else None,
            dense=self._dense() if A.shape[1] <= DENSE_LIMIT else None,
        )

    # ---------------------------------------------------------------------------------------------
    # The checks. Probes have entries of variance one, so that |A u| estimates the Frobenius norm of
    # A, the size of a product's rounding error is eps |A u|, and that of its inner product with
    # another probe is the same: no factor of |w| ~ sqrt(n), which would hide a small asymmetry of a
    # large A.

    def _determinism(self) -> float:
        return self._compare(
            self._matvec(self.v) - self.Av,
            self._size(self.Av),
            "a deterministic product: A v the same twice",
            "Call model.eval(), fix seeds, and use data that stay the same; for rounding that "
            "differs from run to run on a GPU raise rtol.",
        )

    def _linearity(self) -> float:
        # a is negative and a + b is not 1: neither |v| nor an affine term passes.
        a, b = -3.0, 0.25
        product = self._matvec(a * self.u + b * self.v)
        return self._compare(
            product - a * self.Au - b * self.Av,
            abs(a) * self._size(self.Au) + b * self._size(self.Av),
            "a linear product, A (a u + b v) = a A u + b A v",
            "Look for an affine term, a norm of v, a clamp, or a step that does not scale with v.",
        )

    def _symmetry(self) -> float:
        if not self.square:
            raise _error(
                "a square operator, since it is tagged symmetric",
                f"shape {self.A.shape}",
                "Pass symmetric=False.",
            )
        return self._compare(
            self.A.domain.inner(self.Au, self.v) - self.A.domain.inner(self.u, self.Av),
            self._size(self.Au) + self._size(self.Av),
            "<A u, v> = <u, A v>, since A is tagged symmetric",
            "Pass symmetric=False and give the adjoint, or symmetrise with 0.5 * (A + A.T).",
        )

    def _adjoint(self) -> float | None:
        before = self.w.clone()
        try:
            product = self.A._rmatvec(self.w)
        except OperatorError:
            return None  # the operator has no adjoint
        self._checked(product, self.A.domain, "A' u", (self.A.domain.size,))
        self._check_unchanged(self.w, before, "A' u")
        return self._compare(
            self.A.codomain.inner(self.Au, self.w) - self.A.domain.inner(self.u, product),
            self._size(self.Au) + self.A.domain.norm(product),
            "<A u, w> = <u, A' w> for the adjoint A'",
            "Let _rmatvec (rmatvec=) compute the transpose of what _matvec computes.",
        )

    def _matmat(self) -> float:
        block = torch.stack([self.u, self.v], dim=1)
        shape = self.A.codomain.size, 2
        product = self._product(self.A.matmat, block, self.A.codomain, "A V", shape)
        return self._compare(
            (product - torch.stack([self.Au, self.Av], dim=1)).reshape(-1),
            self._size(self.Au) + self._size(self.Av),
            "matmat(V) with the products of the columns of V as columns",
            "Let _matmat agree with _matvec, or leave it out.",
        )

    def _tree(self) -> float:
        tree = self.A.domain.unflatten(self.u)
        product = self.A.codomain.flatten(self.A.matvec(tree), what="A v")
        return self._compare(
            product - self.Au,
            self._size(self.Au),
            "the same product for a tree and for its flat vector",
            "Override _matvec, which sees flat vectors, rather than matvec.",
        )

    def _curvature(self) -> float:
        curvature = float(self.A.curvature(self.v))
        expected = self.A.domain.inner(self.v, self.Av)
        return self._compare(
            curvature - expected,
            abs(expected) + self._size(self.Av),
            "curvature(v) = <v, A v>",
            "Let _curvature agree with _matvec, or leave it out.",
        )

    def _dense(self) -> float:
        A, space = self.A, self.A.codomain
        matrix = self._checked(A.to_dense(), space.whole_space, "to_dense()", A.shape)
        u = A.domain.whole(self.u[None])[0]
        return self._compare(
            space.part(matrix @ u.to(matrix.dtype)) - self.Au,
            self._size(self.Au),
            "to_dense() @ u = A u",
            "Let to_dense agree with _matvec, or leave it out.",
        )

    def _check_inner(self) -> None:
        u, v, A = self.u, self.v, self.A
        uv, vu, uu, vv = (
            A.domain.inner(u, v),
            A.domain.inner(v, u),
            A.domain.inner(u, u),
            A.domain.inner(v, v),
        )
        if not (uu > 0.0 and vv > 0.0):
            raise _error(
                "a positive inner product, <v, v> > 0",
                f"{min(uu, vv):.3g}",
                "Let inner(u, v) be that of a Euclidean space, summed over all processes.",
            )
        scale = math.sqrt(uu * vv)
        self._compare(
            uv - vu, scale, "a symmetric inner product", "Look at the inner product of A.domain."
        )
        basis = torch.stack([u, v])
        inners = A.domain.inners(basis, v).double().cpu() - torch.tensor(
            [uv, vv], dtype=torch.float64
        )
        self._compare(
            float(inners.abs().max()),
            scale + vv,
            "inners(basis, v) with the inner products of the rows of the basis",
            "Override inners along with inner.",
        )

    # ---------------------------------------------------------------------------------------------
    # Products and comparisons

    def _matvec(self, v: Tensor) -> Tensor:
        return self._product(self.A._matvec, v, self.A.codomain, "A v", (self.A.codomain.size,))

    def _product(
        self,
        function: Callable[[Tensor], Any],
        v: Tensor,
        space: Space,
        what: str,
        shape: tuple[int, ...],
    ) -> Tensor:
        """function(v), checked as a tensor, with v unchanged."""
        before = v.clone()
        product = self._checked(function(v), space, what, shape)
        self._check_unchanged(v, before, what)
        return product

    def _check_unchanged(self, v: Tensor, before: Tensor, what: str) -> None:
        if not torch.equal(v, before):
            raise _error(
                f"{what} to leave its input as it was",
                f"an input changed by up to {float((v - before).abs().max()):.3g}",
                "Copy it first: v.clone(); or use operations without a trailing underscore.",
            )

    def _checked(self, product: Any, space: Space, what: str, shape: tuple[int, ...]) -> Tensor:
        wanted = (shape, space.dtype, space.device)
        got: Any = type(product).__name__
        if isinstance(product, Tensor):
            got = (tuple(product.shape), product.dtype, product.device)
        if got != wanted:
            raise _error(
                f"{what} of (shape, dtype, device) {wanted}",
                str(got),
                "Let products have the dtype and device of the vectors, and the space's length.",
            )
        if product.requires_grad:
            raise _error(
                f"{what} without a graph",
                "a tensor that requires a gradient",
                "Compute it under torch.no_grad(), or return product.detach().",
            )
        if not space.all_finite(product):
            raise _error(
                f"a finite {what}",
                f"NaN or Inf in '{space.first_bad_name(product.reshape(shape[0], -1).sum(1))}'",
                "Check the point at which A is built for overflow, log(0) or division by zero.",
            )
        return product

    def _compare(
        self, difference: Tensor | float, scale: float, expected: str, remedy: str
    ) -> float:
        """|difference| / scale, if that is at most rtol."""
        size = (
            self.A.codomain.norm(difference) if isinstance(difference, Tensor) else abs(difference)
        )
        defect = size / scale if scale > 0.0 else (0.0 if size == 0.0 else math.inf)
        if not defect <= self.rtol:
            raise _error(
                expected,
                f"a relative difference of {defect:.3g}, where {self.rtol:.1g} is allowed",
                remedy + " Rounding alone? Give rtol=.",
            )
        return defect

    def _size(self, vector: Tensor) -> float:
        """The norm that belongs to A's inner product."""
        space = self.A.codomain
        return math.sqrt(space.inner(vector, vector)) if self.square else space.norm(vector)


def _error(expected: str, got: str, remedy: str) -> OperatorError:
    return OperatorError(expected=expected, got=got, remedy=remedy)
