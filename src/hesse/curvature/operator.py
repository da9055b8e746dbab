# SPDX-License-Identifier: Apache-2.0
"""`CurvatureOperator`: every curvature matrix at a point, as an operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from typing import Any

from torch import Tensor

from hesse.ad.definition import CURVATURE, Definition, Quantity, Vectors
from hesse.ad.quadratic import Quadratic
from hesse.ad.summands import Summand, as_sum
from hesse.ad.variables import Variables
from hesse.boundary import public
from hesse.curvature.described import described
from hesse.curvature.diagonals.at_points import Diagonals
from hesse.curvature.likelihood_sum import LikelihoodSum
from hesse.curvature.point_product import point_product, summand_points
from hesse.engine.assembly import Assembly, Shared
from hesse.engine.fallback import PointProduct
from hesse.engine.kept_products import Product
from hesse.engine.options import ProductOptions
from hesse.engine.plan import Plan
from hesse.engine.point import Point
from hesse.engine.point_program import Evaluation
from hesse.engine.program_cache import ProgramCache
from hesse.engine.row_layout import RowLayout
from hesse.errors import FunctionError
from hesse.operators.algebra import LinearOperator
from hesse.operators.diagonal import IdentityOperator
from hesse.risk.risk import Risk
from hesse.vectors.rows import transposed
from hesse.vectors.space import Space, Tree


class CurvatureOperator(LinearOperator):
    """A curvature matrix of f at x, such as a Hessian, Gauss-Newton matrix or Jacobian.

    It is made by a function: `hessian_operator`, `ggn_operator`, `jacobian_operator`. It computes
    nothing until the first product or the first look at `value` or `gradient`.

    Args:
        definition: which matrix.
        f: the function: a `Risk`, or what the definition differentiates.
        x: the point; it is copied.
        options: how products are to be taken.
        layouts: of the vectors of which every summand of f has a slice.
        programs: traced programs that may serve; default those of f.
        diagonals: how the diagonal is computed at any point of f; default as the definition says.
    """

    def __init__(
        self,
        definition: Definition,
        f: Any,
        x: Tree,
        options: ProductOptions,
        layouts: Mapping[Vectors, RowLayout] | None = None,
        programs: ProgramCache | None = None,
        diagonals: Diagonals | None = None,
    ) -> None:
        self._definition, self._f, self._options = definition, f, options
        self._diagonals = Diagonals(definition, f) if diagonals is None else diagonals
        self._layouts = layouts or {}
        programs = getattr(f, "programs", None) if programs is None else programs
        self._programs = ProgramCache() if programs is None else programs
        self._space = Space.of(x)
        # A copy: the operator is that of this point even if the caller's tensors move on.
        self._x = self._space.copy(x)
        self._variables = Variables.of(self._x, self._space)
        self._assemblies: dict[Vectors, Assembly] = {
            "variables": Shared(self._variables),
            **self._layouts,
        }
        product = definition.quantities[0]
        domain, codomain = (
            self._assemblies[side or "variables"].space
            for side in (product.direction, product.result)
        )
        super().__init__(domain, codomain, symmetric=product.direction == product.result)

    @cached_property
    def _at(self) -> PointProduct:
        """The product at the point, made when one is asked for: a diagonal needs none."""
        return point_product(
            *(self._points(), self._assemblies, self._definition, self._options, self._programs),
            as_sum(self._f),
        )

    def _points(self) -> Callable[[], Iterator[tuple[Summand, Point]]]:
        """What gives the summands of f, and the point at which each is taken.

        It does not hold the operator, which holds the product: what is released is freed at once.
        """
        f = as_sum(self._f)
        return partial(summand_points, self._definition, f, self._variables, self._layouts)

    @property
    @public("{self}.value", nested=False)
    def value(self) -> Tensor:
        """f(x), a scalar tensor; computed at the first use."""
        self._check_scalar()
        return self._at.value.clone()

    @property
    def gradient(self) -> Tree:
        """grad f(x), a tree like x."""
        return self.domain.unflatten(self.flat_gradient)

    @property
    @public("{self}.gradient", nested=False)
    def flat_gradient(self) -> Tensor:
        """grad f(x), shape (n,); computed at the first use, together with the value."""
        self._check_scalar()
        return self._at.gradient.clone()

    @property
    def mode(self) -> str:
        """How products are taken; "auto" may change as they are."""
        return self._at.mode

    @property
    def plan(self) -> Plan:
        """How products are taken and why, what they cost, what was tried: made to be printed."""
        return self._at.plan

    @public("{self}.at(x)")
    def at(self, x: Tree) -> CurvatureOperator:
        """The matrix of the same function at another point of the same structure."""
        self._space.leaves(x, what="x")
        return CurvatureOperator(
            *(self._definition, self._f, x, self._options, self._layouts, self._programs),
            diagonals=self._diagonals,
        )

    def announce(self, products: int) -> None:
        self._at.announce(products)

    def summand_products(self, v: Tensor) -> Iterator[tuple[float, Product]]:
        """c_i and the prepared product of every summand of f, for code that looks into programs."""
        return self._at.summand_products(v)

    def evaluations(self) -> Iterator[tuple[float, Evaluation]]:
        """c_i and every summand of f at the point, for programs that need no product.

        Those of a summand without a key serve at one point only, and are not looked up.
        """
        for index, (summand, point) in enumerate(self._points()()):
            entry = None
            if not (summand.key is None or isinstance(summand.function, Quadratic)):
                entry = self._programs.entry(point, summand.key, self._options)
            outputs = partial(self._outputs, index, point)
            yield summand.coefficient, Evaluation(point, entry, outputs)

    def _outputs(self, index: int, point: Point) -> list[Tensor]:
        return self._at.outputs(index, point)

    def __reduce__(self):  # programs are traced again where they are wanted
        return CurvatureOperator, (
            *(self._definition, self._f, self._x, self._options, self._layouts),
        )

    def _split_shift(self) -> tuple[LinearOperator, float]:
        """The matrix without the weight decay of a risk, and that decay."""
        is_risk = isinstance(self._f, Risk | LikelihoodSum) and self._definition.is_sum
        decay = self._f.weight_decay if is_risk else 0.0
        return (self - decay * IdentityOperator(self.domain), decay) if decay else (self, 0.0)

    def _expression(self) -> str:
        return self._definition.name

    def _details(self) -> tuple[tuple[str, str], ...]:
        about = self._definition.about
        return ((self._definition.name, f"{about}{', ' if about else ''}of {described(self._f)}"),)

    def _matvec(self, v: Tensor) -> Tensor:
        return self._at.product(v, self._definition.quantities[0])

    def _rmatvec(self, u: Tensor) -> Tensor:
        adjoint = self._quantity("adjoint")
        return super()._rmatvec(u) if adjoint is None else self._at.product(u, adjoint)

    def _matmat(self, block: Tensor) -> Tensor:
        if not self.symmetric:
            return super()._matmat(block)
        return self._at.products(transposed(block)).T

    def _curvature(self, v: Tensor) -> float:
        if self._quantity(CURVATURE.name) is None:
            return super()._curvature(v)
        return float(self._at.product(v, CURVATURE))

    def _computed_diagonal(self) -> Any:
        return self._known_way

    @cached_property
    def _known_way(self) -> Any:
        return self._diagonals.at(self._x, self._variables)

    def _check_scalar(self) -> None:
        if not self.symmetric:
            raise FunctionError(
                expected="the matrix of a scalar function, which has a value and a gradient",
                got="the Jacobian of several outputs",
                remedy="Call the function for its outputs; the gradient of u'g is J.T @ u.",
            )

    def _quantity(self, name: str) -> Quantity | None:
        return next((q for q in self._definition.quantities if q.name == name), None)
