# SPDX-License-Identifier: Apache-2.0
"""The Hessian of f at one point, as a product on flat vectors, by the first mode that works.

`HessianAt` is where the modes, the terms of f and the frozen leaves of x meet; `hvp` takes one
product from it, a Hessian operator many. With `mode="auto"` it starts with the fastest mode and
steps down when torch has no derivative for an operation of f, saying so once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

from hesse.ad.determinism import run_deterministic
from hesse.ad.evaluate import UndifferentiableError, check_finite, check_finite_value
from hesse.ad.finite_differences import central_difference, forward_difference
from hesse.ad.hessian import (
    HessianKind,
    Mode,
    forward_over_reverse,
    reverse_over_forward,
    reverse_over_reverse,
    value_and_gradient,
)
from hesse.ad.summands import Term, has_one_term, terms, weighted_sum
from hesse.ad.variables import Variables
from hesse.engine.options import Request
from hesse.engine.plan import Plan, plan_of
from hesse.engine.summed_product import PREPARED, Preparations, Prepared
from hesse.errors import DerivativeError, FallbackWarning, HesseError
from hesse.vectors.inner_products import norm
from hesse.vectors.rows import stacked
from hesse.vectors.space import Space, Tree

HessianMode = Literal[
    "auto",
    "compiled-split",
    "traced-split",
    "retained-graph",
    "reverse-over-reverse",
    "forward-over-reverse",
    "reverse-over-forward",
    "finite-difference",
    "forward-difference",
]

ONE_SHOT: dict[str, Mode] = {
    "reverse-over-reverse": reverse_over_reverse,
    "forward-over-reverse": forward_over_reverse,
    "reverse-over-forward": reverse_over_forward,
    "finite-difference": central_difference,
    "forward-difference": forward_difference,
}

# Reverse over reverse first: in eager torch it is the fastest and asks least of f (no forward-mode
# rules). The one-sided difference is never chosen for a user.
LADDER = list(ONE_SHOT)[:4]


class HessianAt:
    """v -> H v at x on flat vectors, with the value and the gradient at x.

    Args: f, x as in `hvp`; what is asked for; `repeated`: many products will follow, so that
    preparing them pays and f is checked for randomness; `preparations`: those of f, which every
    point adds to.
    """

    def __init__(
        self,
        f: Callable,
        x: Tree,
        space: Space,
        request: Request,
        call: str,
        *,
        repeated: bool,
        preparations: Preparations | None = None,
    ) -> None:
        mode = request.mode
        self._f, self._space, self._call, self._repeated = f, space, call, repeated
        self._variables, self._x = Variables.of(x, space, call)
        # No method of self: a cycle of references would keep the graph until it is collected.
        self._terms = partial(leaf_terms, f, self._variables, call)
        self._asked = mode
        self._modes = [mode] if mode != "auto" else LADDER.copy()
        self._failures: list[str] = []
        self._prepared: Prepared | None = None
        if mode in PREPARED or (mode == "auto" and repeated):
            self._modes = ["prepared", *(LADDER if mode == "auto" else [])]
            self._prepared = Prepared(
                HessianKind(call),
                self._terms,
                self._variables,
                self._x,
                request,
                {} if preparations is None else preparations,
                alone=has_one_term(f),
            )
        self._value: Tensor | None = None
        self._gradient: Tensor | None = None
        self._verified = not repeated
        self._custom: str | None = None
        self._trusted = False

    @property
    def mode(self) -> str:
        """The mode in use; with "auto" it may change as products are taken."""
        return self._modes[0] if self._prepared is None else self._prepared.mode

    @property
    def value(self) -> Tensor:
        """f(x), shape ()."""
        if self._value is None:
            value = self._first_that_works(self._evaluate_value)
            check_finite_value(float(value), self._call)
            self._value = value
        return self._value

    @property
    def gradient(self) -> Tensor:
        """grad f(x), flat."""
        if self._gradient is None:
            gradient = self._first_that_works(self._evaluate_gradient)
            self._gradient = check_finite(gradient, self._space, self._call, "gradient")
        return self._gradient

    @property
    def plan(self) -> Plan:
        """How products are taken, and what was tried."""
        if self._prepared is not None:
            return self._prepared.plan(self._failures)
        return plan_of(self.mode, [], self._failures)

    def expect(self, products: int) -> None:
        """Be told that so many products will follow."""
        if self._prepared is not None:
            self._prepared.expect(products)

    def product(self, v: Tensor, *, with_gradient: bool = False) -> Tensor:
        """H v for a flat v, checked to be finite."""
        product = self._first_that_works(lambda: self._product(v, with_gradient))
        return check_finite(product, self._space, self._call, "product")

    def products(self, block: Tensor) -> Tensor:
        """H v for the rows v of a block, shape (k, n)."""
        if len(block) == 0:
            return block
        singles = 0 if self._prepared is not None and self._prepared.takes_blocks else 1
        done = [self.product(v) for v in block[:singles]]  # which may step down the ladder
        if self._prepared is None:
            return stacked(len(block), chain(done, map(self.product, block[singles:])))
        products = self._prepared.products(block[singles:])
        for row in products:
            check_finite(row, self._space, self._call, "product")
        return stacked(len(block), chain(done, products)) if done else products

    def _product(self, v: Tensor, with_gradient: bool) -> Tensor:
        if self._verified or self._prepared is not None:
            result = self._run(v, with_gradient)
        else:
            result = run_deterministic(lambda: self._run(v, with_gradient), self._call)
            self._verified = True
        if self._custom is not None and not self._trusted:
            self._check_custom_function(v, result)
            self._trusted = True
        return result

    def _run(self, v: Tensor, with_gradient: bool = False) -> Tensor:
        if self._prepared is None:
            return self._one_shot(v, with_gradient, self.mode)
        product = self._prepared.product(v)
        self._custom = self._prepared.custom
        return product

    def _check_custom_function(self, v: Tensor, product: Tensor) -> None:
        """Compare with a central difference; with many products to come, in a random direction."""
        if self._repeated:
            v = self._space.gaussian(torch.Generator().manual_seed(0))
            product = self._run(v)
        difference = self._one_shot(v, False, "finite-difference")
        # Its error is some eps^(2/3) of third derivatives; a term that is missing is larger.
        eps = max(torch.finfo(dtype).eps for dtype in self._space.dtypes)
        if norm(product - difference) > min(10 * eps ** (1 / 3), 0.5) * norm(difference):
            raise UndifferentiableError(
                f"the backward pass of {self._custom} cannot be differentiated, or is wrong"
            )

    def _one_shot(self, v: Tensor, with_gradient: bool, name: str) -> Tensor:
        directions, mode = self._variables.split(v), ONE_SHOT[name]

        def part(term: Term) -> tuple[Tensor | None, ...]:
            product, value, gradient, custom = mode(
                term.function, self._x, directions, self._call, with_gradient
            )
            self._custom = self._custom or custom
            flat = None if gradient is None else self._variables.flatten(gradient)
            return self._variables.flatten(product), value, flat

        parts = ((term.coefficient, part(term)) for term in self._terms())
        product, value, gradient = weighted_sum(parts)
        assert product is not None
        if with_gradient:
            assert value is not None and gradient is not None
            check_finite_value(float(value), self._call)
            self._gradient = check_finite(gradient, self._space, self._call, "gradient")
            self._value = value
        return product

    def _evaluate_value(self) -> Tensor:
        if self._prepared is not None and self._prepared.keeps_all:
            return self._prepared.value()
        kind = HessianKind(self._call)
        (value,) = weighted_sum(
            (term.coefficient, (kind.value(term.function, self._x),)) for term in self._terms()
        )
        assert value is not None
        return value

    def _evaluate_gradient(self) -> Tensor:
        if self._prepared is not None and self._prepared.keeps_all:
            self._value, gradient = self._prepared.value_and_gradient()
            return gradient

        def part(term: Term) -> tuple[Tensor, Tensor]:
            value, gradient = value_and_gradient(term.function, self._x, self._call)
            return value, self._variables.flatten(gradient)

        parts = ((term.coefficient, part(term)) for term in self._terms())
        value, gradient = weighted_sum(parts)
        assert gradient is not None
        self._value = value
        return gradient

    def _first_that_works(self, run: Callable[[], Tensor]) -> Tensor:
        """run() by the first mode for which torch has the derivatives."""
        failures: list[tuple[str, RuntimeError]] = []
        before = self._modes, self._prepared, self._custom
        while True:
            try:
                result = run()
            except (HesseError, torch.OutOfMemoryError):
                raise
            except RuntimeError as error:
                failures.append((self.mode, error))
                self._failures.append(f"{self.mode} failed: {str(error).strip().splitlines()[0]}")
                if len(self._modes) == 1:  # f may work the next time
                    self._modes, self._prepared, self._custom = before
                    raise self._explain(failures[0][1]) from failures[0][1]
                # Where the backward pass is no differentiable program, only differences are left.
                self._modes = self._modes[-1 if isinstance(error, UndifferentiableError) else 1 :]
                self._prepared, self._custom = None, None
                continue
            if failures and _differ_in_kind(failures[0][0], self.mode):
                self._warn(failures)
            return result

    def _explain(self, error: RuntimeError) -> Exception:
        """A DerivativeError if the gradient of f exists and only its derivative does not."""
        try:
            term = next(self._terms())
            value_and_gradient(term.function, self._x, self._call)
        except RuntimeError:
            return error  # f itself fails: its own message says it best
        return DerivativeError(
            self._call,
            expected=f"an f whose derivatives exist in mode {self._asked!r}",
            got=str(error).strip().splitlines()[0],
            remedy="Use mode='auto' or 'finite-difference', which needs the gradient alone; or "
            "replace the operation that torch names.",
        )

    def _warn(self, failures: list[tuple[str, RuntimeError]]) -> None:
        tried = "; ".join(f"{mode}: {str(e).strip().splitlines()[0]}" for mode, e in failures)
        warnings.warn(
            f"{self._call}: using {self.mode!r} because {tried}", FallbackWarning, stacklevel=2
        )


def leaf_terms(f: Callable, variables: Variables, call: str) -> Iterator[Term]:
    """The terms of f as functions of the varying leaves."""
    for term in terms(f):
        yield replace(term, function=variables.bind(term.function, call))


def _differ_in_kind(first: str, chosen: str) -> bool:
    # A kept graph and reverse over reverse are the same differentiation.
    return {first, chosen} != {"retained-graph", "reverse-over-reverse"}
