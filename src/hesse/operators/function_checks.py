# SPDX-License-Identifier: Apache-2.0
r"""Checks of a user's function: is it linear and deterministic, and is A' its adjoint?

$$ A(v_1 + v_2) = A v_1 + A v_2, \qquad u^T (A v_1) = (A^T u)^T v_1 $$

The second compares two inner products, with the first vector, at the first 64 products and then at
every 8th: a function that is affine, nonlinear or random, that has become another one within a run,
or gave a wrong product, does not pass it. For the sake of functions that depend on |v|, the second
product is A (2 v) / 2, which is A v to the bit. The first test costs a product. It is taken at the
second product of a function that is not symmetric, and else only where the inner products differ by
more than they nearly always do: it then tells what they may differ by.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hesse.errors import OperatorError, RandomnessError
from hesse.progress import current_run
from hesse.vectors.space import Space

# Beyond rounding in bfloat16 and the truncation of a difference quotient.
_DEFECT = 0.01
# The other test allows so many times the defect of the first, but these at least and at most. It
# is the finer one: for large n two vectors have little to do with each other.
_TIMES, _LEAST, _MOST = 10.0, 2e-3, 0.02
_SAME = 1e-6  # up to this fraction, products with one vector are the same
_ALWAYS, _EVERY = 64, 8  # so many products are compared, and then every 8th

_REMEDY = "Check it with hesse.testing.check_operator."


class FunctionChecks:
    """What the products so far have shown.

    Args:
        domain, codomain: of the function.
        product: v -> A v, uncounted.
        symmetric: whether A = A'.
    """

    def __init__(
        self,
        domain: Space,
        codomain: Space,
        product: Callable[[Tensor], Tensor],
        *,
        symmetric: bool,
    ) -> None:
        self._domain, self._codomain, self._product = domain, codomain, product
        self._symmetric = symmetric and domain.n == codomain.n
        self._count, self._allowed = 0, 0.0  # until linearity was tested
        self._first: tuple[Tensor, Tensor, object] | None = None

    @property
    def stretch(self) -> float:
        """By which to stretch the next argument, and to shrink the product."""
        return 2.0 if self._symmetric and self._count == 1 else 1.0

    def see_product(self, v: Tensor, product: Tensor) -> None:
        """Raise if this product shows that the function is not what it should be."""
        self._count += 1
        if self._first is None:
            self._remember(v, product)
        elif not self._symmetric:
            if not self._allowed:
                self._test_linearity(v, product, *self._first[:2])
        elif self._allowed or self._is_suspicious(v, product):
            if not self._allowed:
                self._test_linearity(v, product, *self._first[:2])
            self._compare(v, product)

    def see_adjoint(self, u: Tensor, product: Tensor) -> None:
        """Raise if A'u shows that A' is not the adjoint of A."""
        self._count += 1
        self._compare(u, product)

    def _remember(self, v: Tensor, product: Tensor) -> None:
        """Compare others with this product, unless it says nothing."""
        sizes = self._domain.norm(v), self._codomain.norm(product)
        if all(0.0 < size < math.inf for size in sizes):
            self._first = v.clone(), product.clone(), current_run()

    def _test_linearity(self, v: Tensor, product: Tensor, v1: Tensor, product1: Tensor) -> None:
        norm = self._domain.norm(v)
        if not 0.0 < norm < math.inf:
            return
        a = self._domain.norm(v1) / norm
        ours, theirs = self._product(v1 + a * v), product1 + a * product
        size = self._codomain.norm(product1) + a * self._codomain.norm(product)
        defect = self._codomain.norm(ours - theirs)
        if not (math.isfinite(defect) and 0.0 < size < math.inf):
            return
        least = 8 * torch.finfo(self._codomain.dtype).eps
        self._allowed = max(least, min(max(_TIMES * defect / size, _LEAST), _MOST))
        if defect > max(least, _DEFECT) * size and self._is_the_same():
            raise OperatorError(
                expected="a linear function, A (u + v) = A u + A v",
                got=f"a difference of {defect / size:.2g} of |A u| + |A v|",
                remedy=f"Look for an affine term, a clamp or a norm of v. {_REMEDY}",
            )

    @property
    def _is_due(self) -> bool:
        return self._count <= _ALWAYS or self._count % _EVERY == 0

    def _is_suspicious(self, u: Tensor, product: Tensor) -> bool:
        """Whether products of vectors that have little to do with each other differ by too much."""
        part = max(_MOST / self._domain.n**0.5, 64 * torch.finfo(self._domain.dtype).eps)
        return self._is_due and self._defect(u, product, part) > part

    def _defect(self, u: Tensor, product: Tensor, part: float) -> float:
        """|u'(A v1) - (A'u)'v1| over the size of its terms, or 0 if it is below a part of them."""
        assert self._first is not None
        v1, product1, _ = self._first
        domain, codomain = self._domain, self._codomain
        one, two = codomain.inner(u, product1), domain.inner(product, v1)
        difference = abs(one - two)
        if not part * (abs(one) + abs(two)) < difference < math.inf:
            return 0.0  # without the norms, which are larger
        size = codomain.norm(u) * codomain.norm(product1) + domain.norm(product) * domain.norm(v1)
        return difference / size

    def _compare(self, u: Tensor, product: Tensor) -> None:
        """u'(A v1) against (A'u)'v1 where that is due."""
        if self._first is None or not self._is_due:
            return
        part = self._allowed or _MOST
        defect = self._defect(u, product, part)
        if defect > part and self._is_the_same():
            raise OperatorError(
                expected="a symmetric operator, as symmetric=True says"
                if self._symmetric
                else "rmatvec to be the adjoint of matvec",
                got=f"u'(A v) and (A'u)'v that differ by {defect:.2g} of their largest size",
                remedy=f"{_REMEDY} The products may also be nonlinear, or not those of one matrix.",
            )

    def _is_the_same(self) -> bool:
        """Whether the first product still is what it was; raises where it must be and is not.

        Between two runs a function may become another one, whose products are then compared.
        """
        assert self._first is not None
        v1, product1, run = self._first
        norm = self._codomain.norm
        one, two = self._product(v1).clone(), self._product(v1)
        allowed = max(_SAME, 8 * torch.finfo(self._codomain.dtype).eps) * norm(product1)
        if norm(one - product1) <= allowed:
            return True
        if norm(one - two) > allowed:
            raise RandomnessError(
                expected="a deterministic function: the same A v for the same v",
                got=f"products that differ by {norm(one - two) / norm(product1):.2g} of their norm",
                remedy=f"Fix what is random in it. {_REMEDY}",
            )
        if run is not None and run is current_run():
            raise OperatorError(
                expected="the same operator throughout",
                got="a product that has become another one since the first",
                remedy="Leave what the function reads as it is while it is in use.",
            )
        self._first, self._allowed = (v1, one, current_run()), 0.0
        return False
