# SPDX-License-Identifier: Apache-2.0
"""The prepared product of a sum of terms at one point, on flat vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from typing import Literal

import torch
from torch import Tensor

from hesse.ad.definition import Kind
from hesse.ad.summands import Term, weighted_sum
from hesse.ad.variables import Variables, detached
from hesse.engine.data_version import Witness
from hesse.engine.options import Request
from hesse.engine.plan import Plan, plan_of
from hesse.engine.preparation import Preparation
from hesse.engine.term_at import TermAt
from hesse.tracing.partition import Partition
from hesse.vectors.rows import empty_rows

PreparedMode = Literal["auto", "compiled-split", "traced-split", "retained-graph"]
PREPARED = ["compiled-split", "traced-split", "retained-graph"]

Preparations = dict[Hashable, Preparation]


class Prepared:
    """sum_i c_i (product i) at x, with the value and the gradient of sum_i c_i f_i.

    Args:
        kind: which product.
        terms: gives the terms anew for every sweep; their functions take the leaves of x.
        variables, x: the leaves that vary, and where they are.
        request: a rung of the ladder or "auto", and the rest that is asked for.
        preparations: what is prepared already, for these terms or others of the same key.
        alone: whether there is but one term, so that its residuals are kept unless there is a
            budget; terms that are not kept are computed anew in every sweep.
    """

    def __init__(
        self,
        kind: Kind,
        terms: Callable[[], Iterator[Term]],
        variables: Variables,
        x: list[Tensor],
        request: Request,
        preparations: Preparations,
        *,
        alone: bool,
    ) -> None:
        self._kind, self._terms, self._variables, self._x = kind, terms, variables, x
        self._request, self._preparations = request, preparations
        unbounded = math.inf if alone else 0.0
        self._keep, later = request.keep or (unbounded, unbounded)
        self._more = later - self._keep if later > self._keep else 0.0
        self._kept: dict[int, tuple[float, TermAt]] = {}
        self._count: int | None = None
        self._own: dict[int, Preparation] = {}
        self._trusted: dict[int, tuple[Partition, Witness]] = {}
        self._met: dict[int, Preparation] = {}
        self._hint = 0
        self.last: TermAt | None = None
        self.custom: str | None = None
        """A custom function in a term whose graph was looked at."""

    @property
    def keeps_all(self) -> bool:
        """Whether everything is held on to, so that a value is the first part of a product."""
        return self._keep == math.inf

    @property
    def mode(self) -> str:
        """The rung that the last product was taken by."""
        return "retained-graph" if self.last is None else self.last.rung

    def plan(self, failures: list[str]) -> Plan:
        """How products are taken."""
        return plan_of(self.mode, list(self._met.values()), failures)

    def expect(self, products: int) -> None:
        """Be told that so many products will follow."""
        self._hint = products
        for _, at in self._kept.values():
            at.preparation.hint = max(at.preparation.hint, products)

    def value(self) -> Tensor:
        """sum_i c_i f_i(x)."""
        (value,) = weighted_sum((c, (term.value,)) for c, term in self._at())
        assert value is not None
        return value

    def value_and_gradient(self) -> tuple[Tensor, Tensor]:
        """The value and the flat gradient."""

        def both(term: TermAt) -> tuple[Tensor, Tensor]:
            gradient = self._variables.flatten(term.take_gradient())
            return term.value, gradient

        value, gradient = weighted_sum((c, both(term)) for c, term in self._at())
        assert value is not None and gradient is not None
        return value, gradient

    def product(self, v: Tensor) -> Tensor:
        """The product with a flat vector."""
        product, direction = None, _plain(v)
        for coefficient, term in self._at():
            joined = term.apply("product", direction)
            self.custom = self.custom or term.custom
            accumulate = product is not None
            if not accumulate and term.makes_products and not self._variables.frozen:
                product = joined if coefficient == 1.0 else joined.mul_(coefficient)
            else:
                product = v.new_empty(v.shape) if product is None else product
                self._variables.store(product, joined, coefficient, accumulate=accumulate)
            del joined  # before the next term is computed
        assert product is not None
        return product

    @property
    def takes_blocks(self) -> bool:
        """Whether there are programs by now, which can take several directions at once."""
        return self.last is not None and self.last.rung != "retained-graph"

    def products(self, block: Tensor) -> Tensor:
        """The products with the rows of a block, shape (k, n)."""
        products = empty_rows(*block.shape, dtype=block.dtype, device=block.device)
        block = _plain(block)
        for index, (coefficient, term) in enumerate(self._at()):
            done = 0
            while done < len(block):
                k, joined = self._some_products(term, block[done:])
                rows = products[done : done + k]
                self._variables.store(rows, joined, coefficient, accumulate=index > 0)
                done += k
        return products

    def _some_products(self, term: TermAt, block: Tensor) -> tuple[int, Tensor]:
        """The products of one term with the first k rows, as many at once as pay."""
        # Powers of two, so that few sizes are ever recorded.
        k = 1 << (min(term.directions_at_once, len(block)).bit_length() - 1)
        if k > 1:
            joined = term.apply_block(block[:k])
            if joined is not None:
                return k, joined
        return 1, term.apply("product", block[0])[None]

    def curvature(self, v: Tensor) -> Tensor:
        """v' (product with v), where the kind has a shorter way to it."""
        direction = _plain(v)
        parts = ((c, (term.apply("curvature", direction),)) for c, term in self._at())
        (curvature,) = weighted_sum(parts)
        assert curvature is not None
        return curvature

    def _at(self) -> Iterator[tuple[float, TermAt]]:
        """(c_i, term i at x)."""
        if self._count is not None and len(self._kept) == self._count:
            for coefficient, at in self._kept.values():
                self.last = at
                yield coefficient, at
            return
        count = 0
        for index, term in enumerate(self._terms()):
            count += 1
            witness = self._witness(index, term)
            known = witness is not None and witness is self._trusted[index][1]
            if known and index in self._kept:
                self.last = self._kept[index][1]
                yield self._kept[index]
                continue
            if index in self._kept:  # other batches in every sweep: there is nothing to keep
                self._kept, self._keep, self._more = {}, 0.0, 0.0
            self.last = at = self._term_at(index, term, known=known)
            if self.keeps_all:
                self._kept[index] = term.coefficient, at
            yield term.coefficient, at
            self._remember(index, term, at, witness)
        self._count = count
        if len(self._trusted) == count:
            self._keep, self._more = self._keep + self._more, 0.0

    def _remember(self, index: int, term: Term, at: TermAt, witness: Witness | None) -> None:
        """What was found out about a term, for the next sweep; its residuals if there is room."""
        if self.keeps_all or term.key is None:
            return
        if at.trusted is None:
            self._trusted.pop(index, None)
            return
        self._trusted[index] = at.trusted, witness or Witness.of(term.data)
        if at.kept_bytes is not None and at.kept_bytes <= self._keep:
            self._keep -= at.kept_bytes
            self._kept[index] = term.coefficient, at

    def _witness(self, index: int, term: Term) -> Witness | None:
        """The one of the last sweep if it knows this term, or a new one; None where none was."""
        known = self._trusted.get(index)
        return None if known is None or term.key is None else known[1].meet(term.data)

    def _term_at(self, index: int, term: Term, *, known: bool) -> TermAt:
        data = [*self._variables.frozen, *term.data]
        preparation = self._preparation(index, term.key, data)
        self._met[id(preparation)] = preparation
        preparation.hint = max(preparation.hint, self._hint)
        trusted = self._trusted[index][0] if known else None
        return TermAt(
            *(self._kind, term.function, self._variables, data, preparation, trusted),
            alone=self.keeps_all,
        )

    def _preparation(self, index: int, key: Hashable, data: list[Tensor]) -> Preparation:
        if key is None:
            return self._own.setdefault(index, Preparation(self._request))
        form = _form([*self._x, *data])
        asked = self._request.mode, self._request.precision, self._request.is_thrifty
        key = (type(self._kind), *asked, self._variables.key, form, key)
        return self._preparations.setdefault(key, Preparation(self._request))


def _plain(directions: Tensor) -> Tensor:
    """In the form that programs are recorded for: contiguous, no inference tensor."""
    return detached(directions.contiguous())


def _form(tensors: list[Tensor]) -> Hashable:
    """The shapes that a program depends on, and what torch was told to compute in."""
    form = [(t.shape, t.stride(), t.dtype, t.device) for t in tensors]
    cast = [device for device in {t.device.type for t in tensors} if _is_autocast(device)]
    dtypes = [torch.get_autocast_dtype(device) for device in cast]
    return tuple(form), torch.get_default_dtype(), tuple(zip(cast, dtypes, strict=True))


def _is_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
