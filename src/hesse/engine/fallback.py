# SPDX-License-Identifier: Apache-2.0
"""`PointProduct`: the product of a definition at one point, by the first mode that works.

With `mode="auto"` it starts with the fastest mode and steps down when torch has no derivative for
an operation of f, saying so once. A definition without one-shot modes has nothing to step down to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import chain
from typing import NoReturn

import torch
from torch import Tensor

from hesse.ad.definition import PRODUCT, Quantity
from hesse.ad.determinism import run_deterministic
from hesse.ad.finite_differences import central_difference
from hesse.ad.graph_nodes import UndifferentiableError
from hesse.ad.hessian import value_and_gradient
from hesse.ad.one_shot import at_rounded_point
from hesse.ad.torch_calls import first_look
from hesse.boundary import warn
from hesse.engine.kept_products import Product
from hesse.engine.one_shot_sum import OneShotSum
from hesse.engine.plan import Plan, plan_of
from hesse.engine.point import Point
from hesse.engine.summed_product import SummedProduct
from hesse.errors import (
    DerivativeError,
    FallbackWarning,
    FunctionError,
    HesseError,
    NonFiniteError,
    first_line,
)
from hesse.vectors.rows import stacked
from hesse.vectors.space import Space


class PointProduct:
    """v -> A v on flat vectors, with the value and the gradient of f at the point.

    Args:
        space, codomain: of directions and of results.
        one_shot: the sum without preparation.
        prepared: the sum that prepares what all products share; None for a single product.
        modes: of `one_shot`, in the order to step down; alone, or after `prepared`.
        mode: what was asked for, for messages.
        lock: what threads wait for: all that share programs take one product at a time.
    """

    def __init__(
        self,
        space: Space,
        codomain: Space,
        one_shot: OneShotSum,
        prepared: SummedProduct | None,
        modes: Iterable[str],
        mode: str,
        lock: AbstractContextManager | None = None,
    ) -> None:
        self._space, self._codomain, self._asked = space, codomain, mode
        self._lock = nullcontext() if lock is None else lock
        self._one_shot, self._prepared = one_shot, prepared
        self._repeated = prepared is not None or mode != "auto"
        self._modes = [*(["prepared"] if prepared is not None else []), *modes]
        self._failures: list[str] = []
        self._value: Tensor | None = None
        self._gradient: Tensor | None = None
        self._is_tested = False
        self._not_finite: NonFiniteError | None = None
        self._custom_function_is_right = False

    @property
    def mode(self) -> str:
        """The mode in use; with "auto" it may change as products are taken."""
        return self._modes[0] if self._prepared is None else self._prepared.mode

    @property
    def plan(self) -> Plan:
        """How products are taken, and what was tried."""
        if self._prepared is not None:
            return self._prepared.plan(self._failures)
        return plan_of(self.mode, [], self._failures)

    @property
    def value(self) -> Tensor:
        """f(x), shape ()."""
        with self._lock:
            if self._value is None:
                value = self._first_that_works(lambda: (self._prepared or self._one_shot).value())
                self._value = _check_finite_value(value)
            return self._value

    @property
    def gradient(self) -> Tensor:
        """grad f(x), flat."""
        with self._lock:
            if self._gradient is None:
                gradient = self._first_that_works(self._take_gradient)
                self._gradient = self._check(gradient, "gradient")
            return self._gradient

    def announce(self, products: int) -> None:
        """So many products will follow."""
        if self._prepared is not None:
            self._prepared.announce(products)

    def product(
        self, v: Tensor, quantity: Quantity = PRODUCT, *, with_gradient: bool = False
    ) -> Tensor:
        """A quantity in the direction of a flat v; its entries are finite."""
        with self._lock:
            return self._first_that_works(lambda: self._product(v, quantity, with_gradient))

    def products(self, block: Tensor) -> Tensor:
        """The products with the rows of a block, shape (k, n)."""
        with self._lock:
            return self._products(block) if len(block) else block

    def _products(self, block: Tensor) -> Tensor:
        singles = 0 if self._prepared is not None and self._prepared.takes_blocks else 1
        done = [self.product(v) for v in block[:singles]]  # which may step down
        if self._prepared is None:
            return stacked(len(block), chain(done, map(self.product, block[singles:])))
        try:
            products = self._prepared.products(block[singles:])
            for row in products:
                self._check(row, "product")
        except NonFiniteError:  # one by one another mode may be found
            return stacked(len(block), chain(done, map(self.product, block[singles:])))
        return stacked(len(block), chain(done, products)) if done else products

    def summand_products(self, v: Tensor) -> Iterator[tuple[float, Product]]:
        """c_i and the prepared product of summand i; none where products are not prepared."""
        return iter(()) if self._prepared is None else self._prepared.summand_products(v)

    def outputs(self, index: int, point: Point) -> list[Tensor]:
        """Those of summand i at the point."""
        return point.evaluate() if self._prepared is None else self._prepared.outputs(index, point)

    # -- Modes -------------------------------------------------------------------------------------

    def _take_gradient(self) -> Tensor:
        self._value, gradient = (self._prepared or self._one_shot).value_and_gradient()
        return gradient

    def _product(self, v: Tensor, quantity: Quantity, with_gradient: bool) -> Tensor:
        if self._is_tested:
            result = self._run(v, quantity, with_gradient)
        else:
            result = self._first_product(v, quantity, with_gradient)
            self._is_tested = True
        name = self._custom_function
        if name is not None and self._one_shot.modes and not self._custom_function_is_right:
            self._check_custom_function(name, v, result)
            self._custom_function_is_right = True
        if self._not_finite is not None and self.mode in _DIFFERENCES:
            if not self._is_smooth(v, result):
                raise self._not_finite
            self._not_finite = None
        return result if quantity.result is None else self._check(result, "product")

    def _first_product(self, v: Tensor, quantity: Quantity, with_gradient: bool) -> Tensor:
        """The product, after tests that f is deterministic and its Hessian symmetric."""

        def run() -> Tensor:
            return self._run(v, quantity, with_gradient)

        # What is prepared is tested where its graph is made. A single exact product is of one run
        # of f, where a look at what is not torch's own would take a tenth of its time.
        quickly = not self._repeated and self.mode not in _DIFFERENCES
        with first_look() as look:
            result = run_deterministic(run, again=quickly) if self._prepared is None else run()
        if quantity == PRODUCT:
            # In exact modes a padding row is frozen; a difference moves it.
            if look.suspects and (self._repeated or self.mode in _DIFFERENCES):
                self._check_symmetric(v, self._check(result, "product"), look.suspects)
            if look.kinks and "finite-difference" in self._one_shot.modes:
                self._check_smooth(v, self._check(result, "product"), sorted(look.kinks))
                if self._repeated:  # v may pass by what a later direction meets
                    u = self._random()
                    self._check_smooth(u, self._run(u, PRODUCT), sorted(look.kinks))
        return result

    def _check_smooth(self, v: Tensor, product: Tensor, kinks: Sequence[str]) -> None:
        """Raise if differences show that f is smooth where operations have kinks.

        What the product misses must be beyond the error of differences: those over steps of two
        lengths agree for a smooth f only, and those to both sides, too.
        """
        if self.mode in _DIFFERENCES:
            return
        norm = self._space.norm
        central = self._one_shot.product("finite-difference", v)[0]
        missing = norm(product - central)
        eps = max(torch.finfo(dtype).eps for dtype in self._space.dtypes)
        if missing <= 10 * eps**0.5 * norm(central):
            return
        error = norm(central - self._wide_difference(v))
        if error > _ALIKE * norm(central) or missing <= 5 * error:
            return
        one_sided = self._one_shot.product("forward-difference", v)[0]
        if norm(one_sided - central) <= 0.3 * missing:
            raise UndifferentiableError(
                f"f is smooth here, but {' and '.join(kinks)} in it have a kink, where torch's "
                "derivative is another"
            )

    def _is_smooth(self, v: Tensor, central: Tensor) -> bool:
        """Whether a central difference is that over a longer step."""
        wide = self._wide_difference(v)
        return self._space.norm(central - wide) <= _ALIKE * self._space.norm(central)

    def _wide_difference(self, v: Tensor) -> Tensor:
        return self._one_shot.product(partial(central_difference, stretch=4.0), v)[0]

    def _check_symmetric(self, v: Tensor, product: Tensor, suspects: Mapping[str, str]) -> None:
        """Raise unless u'Hv = v'Hu for a random u."""
        space, u = self._space, self._random()
        other = self._run(u, PRODUCT)
        defect = abs(space.inner(u, product) - space.inner(v, other))
        size = space.norm(u) * space.norm(product) + space.norm(v) * space.norm(other)
        eps = max(torch.finfo(dtype).eps for dtype in space.dtypes)
        tolerance = eps ** (1 / 3 if self.mode in _DIFFERENCES else 1 / 2) * size
        if defect > tolerance and defect > space.norm(u) * self._rounding(v, product):
            raise DerivativeError(
                expected="a backward pass that is the derivative of f, so that products are those "
                "of a symmetric matrix",
                got=f"u'Hv and v'Hu that differ by {defect / size:.1e} of |u||Hv| + |v||Hu|, "
                f"probably through {' or '.join(suspects)}",
                remedy=" ".join(suspects.values()),
            )

    def _rounding(self, v: Tensor, product: Tensor) -> float:
        """How uncertain rounding makes a product, as that with an inverse close to singular."""
        try:
            moved = self._one_shot.product(at_rounded_point, v)[0]
        except RuntimeError:  # rounding decides whether the matrix has a factor
            return math.inf
        return self._space.norm(product - moved)

    def _random(self) -> Tensor:
        """A direction that no entry of x is left out of."""
        return self._space.gaussian(torch.Generator().manual_seed(0))

    def _run(self, v: Tensor, quantity: Quantity, with_gradient: bool = False) -> Tensor:
        if self._prepared is not None:
            return self._prepared.apply(quantity, v)
        product, value, gradient = self._one_shot.product(self.mode, v, with_gradient)
        if value is not None and gradient is not None:
            self._value = _check_finite_value(value)
            self._gradient = self._check(gradient, "gradient")
        return product

    @property
    def _custom_function(self) -> str | None:
        """An operation in f because of which products must be compared with differences."""
        return (self._prepared or self._one_shot).custom_function

    def _check_custom_function(self, name: str, v: Tensor, product: Tensor) -> None:
        """Compare with a central difference; with many products to come, in a random direction."""
        if self._prepared is not None:
            v = self._random()
            product = self._run(v, PRODUCT)
        difference = self._one_shot.product("finite-difference", v)[0]
        # Its error is some eps^(2/3) of third derivatives; a missing term is larger.
        eps = max(torch.finfo(dtype).eps for dtype in self._space.dtypes)
        norm = self._space.norm
        if norm(product - difference) > min(10 * eps ** (1 / 3), 0.5) * norm(difference):
            raise UndifferentiableError(
                f"the backward pass of {name} cannot be differentiated, or is wrong"
            )

    def _first_that_works(self, run: Callable[[], Tensor]) -> Tensor:
        """run() by the first mode for which torch has the derivatives, and they are finite."""
        failures: list[tuple[str, RuntimeError | NonFiniteError]] = []
        before = self._modes, self._prepared
        while True:
            try:
                result = run()
            except NonFiniteError as error:
                # Another formula may be finite, as of a norm at zero or of equal eigenvalues.
                failures.append((self.mode, error))
            except (HesseError, torch.OutOfMemoryError):
                raise
            except RuntimeError as error:
                failures.append((self.mode, error))
            else:
                if failures and {failures[0][0], self.mode} != _SAME_DIFFERENTIATION:
                    self._warn(failures)
                return result
            if len(self._modes) == 1:  # f may work the next time
                self._modes, self._prepared = before
                self._raise(failures[0][1])
            self._step_down(*failures[-1])

    def _step_down(self, mode: str, error: Exception) -> None:
        self._failures.append(f"{mode} failed: {_reason(error)}")
        if isinstance(error, NonFiniteError):
            self._not_finite = self._not_finite or error
        # Where the backward pass is no differentiable program, only differences are left.
        self._modes = self._modes[-1 if isinstance(error, UndifferentiableError) else 1 :]
        self._prepared = None

    def _raise(self, error: Exception) -> NoReturn:
        explained = error if isinstance(error, HesseError) else self._explain(error)
        if explained is error:
            raise error
        raise explained from error

    def _explain(self, error: Exception) -> Exception:
        """A DerivativeError if the gradient of f exists and only its derivative does not."""
        if not self._one_shot.modes:
            return _explained(error)
        try:
            _, point = next(self._one_shot.points())
            value_and_gradient(point.function, point.variables.x)
        except HesseError as explained:
            return explained
        except (RuntimeError, StopIteration):
            return _explained(error)  # f itself fails: its own message says it best
        return DerivativeError(
            expected=f"an f whose derivatives exist in mode {self._asked!r}",
            got=first_line(error),
            remedy="Use mode='auto' or 'finite-difference', which needs the gradient alone; or "
            "replace the operation that torch names.",
        )

    def _warn(self, failures: Sequence[tuple[str, Exception]]) -> None:
        tried = "; ".join(f"{mode}: {_reason(error)}" for mode, error in failures)
        warn(f"using {self.mode!r} because {tried}", FallbackWarning)

    def _check(self, vector: Tensor, what: str) -> Tensor:
        """A vector itself; for NaN or Inf in it an error that names the parameter."""
        if self._space.all_finite(vector):
            return vector
        space = self._space if vector.shape == (self._space.size,) else self._codomain
        raise NonFiniteError(
            expected=f"a finite {what}",
            got=f"NaN or Inf in the {what} with respect to '{space.first_bad_name(vector)}'",
            remedy="Look for a division by zero, log(0), sqrt(0) or |.| at a kink, or an overflow "
            "at this point; v and x must be finite too.",
        )


_DIFFERENCES = {"finite-difference", "forward-difference"}

# Two differences of a smooth function are as close, in relative terms.
_ALIKE = 0.02

# A retained graph and reverse over reverse are the same differentiation.
_SAME_DIFFERENTIATION = {"retained-graph", "reverse-over-reverse"}


def _reason(error: Exception) -> str:
    return error.got if isinstance(error, HesseError) else first_line(error)


# What torch says of an f that writes to x.
_WRITES = "leaf Variable that requires grad is being used in an in-place operation"


def _explained(error: Exception) -> Exception:
    """An error of f's, which says it best itself, with a few exceptions."""
    if _WRITES not in str(error):
        return error
    return FunctionError(
        expected="a function that leaves its argument as it is",
        got="one that writes to it",
        remedy="Write to a copy: x = x.clone() at the beginning of f.",
    )


def _check_finite_value(value: Tensor) -> Tensor:
    if math.isfinite(float(value)):
        return value
    raise NonFiniteError(
        expected="a finite value f(x)",
        got=str(float(value)),
        remedy="Check x and the data for NaN, and f for overflow or a domain error at this point.",
    )
