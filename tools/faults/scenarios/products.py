# SPDX-License-Identifier: Apache-2.0
"""Faults in the products of an operator that a user wrote."""

from __future__ import annotations

import math
from typing import Any

import torch

import hesse
from tools.faults.fault import Happened, Injected, Seen, fault, marked
from tools.faults.scenarios.calls import (
    CALLS,
    FEW,
    LONG,
    Disturbed,
    definite,
    randn,
    seeded,
    then_right,
    with_fault,
)

_GROUP = "Products that are wrong"


@fault(_GROUP, "NaN in the 6th product", LONG)
def nan(call: Any) -> Seen:
    """One entry of a product is NaN."""

    def disturb(v: Any, product: Any) -> Any:
        product[7] = math.nan
        return product

    return with_fault(call, Disturbed(disturb))


@fault(_GROUP, "Inf in the 6th product", LONG)
def inf(call: Any) -> Seen:
    """One entry of a product is infinite."""

    def disturb(v: Any, product: Any) -> Any:
        product[7] = math.inf
        return product

    return with_fault(call, Disturbed(disturb))


@fault(_GROUP, "an affine product, A v + c", LONG)
def affine(call: Any) -> Seen:
    """A product that is not linear."""
    M, c = definite(), randn(120, seed=9)

    def product(v: Any) -> Any:
        Happened.now()
        return M @ v + c

    return with_fault(call, product)


@fault(_GROUP, "a product that clamps, A min(v, 0.05)", LONG)
def clamps(call: Any) -> Seen:
    """A product that is not linear, nor homogeneous."""
    M = definite()

    def product(v: Any) -> Any:
        Happened.now()
        return M @ v.clamp(max=0.05)

    return with_fault(call, product)


@fault(_GROUP, "not symmetric in spite of symmetric=True", LONG)
def not_symmetric(call: Any) -> Seen:
    """A product whose matrix has a skew part."""
    M = definite() + 0.3 * torch.triu(randn(120, 120, seed=3), 1)

    def product(v: Any) -> Any:
        Happened.now()
        return M @ v

    return with_fault(call, product, M)


@fault(_GROUP, "not deterministic: noise of 1 % in every product", LONG)
def noisy(call: Any) -> Seen:
    """A product with noise."""
    M = definite()

    def product(v: Any) -> Any:
        Happened.now()
        w = M @ v
        return w + 0.01 * float(w.abs().max()) * torch.randn(120, dtype=torch.float64)

    return with_fault(call, product)


@fault(_GROUP, "the 6th product is 1.5 times too large", LONG)
def other_matrix(call: Any) -> Seen:
    """The matrix changes for one product."""
    return with_fault(call, Disturbed(lambda v, product: 1.5 * product))


@fault(_GROUP, "the product becomes that of another matrix after the 12th", LONG)
def becomes_another(call: Any) -> Seen:
    """The matrix changes in the middle of a run."""
    M = definite() + definite().flip(0, 1)
    return with_fault(call, Disturbed(lambda v, product: M @ v, 13, always=True))


@fault(_GROUP, "rmatvec is not the adjoint of matvec", {k: k for k in ("lsmr", "svds")})
def wrong_adjoint(name: str) -> Seen:
    """A' is another matrix."""
    M, b = randn(120, 60), randn(120, seed=1)

    def adjoint(u: Any) -> Any:
        Happened.now()
        return M.T @ u + 2 * u[:60]

    def call(rmatvec: Any) -> Any:
        A = hesse.function_operator(lambda v: M @ v, 60, 120, rmatvec=rmatvec, dtype=M.dtype)
        if name == "lsmr":
            return hesse.solve(A, b, "lsmr", rtol=1e-9).x
        return hesse.svds(A, 2, generator=seeded()).S

    return Seen(call(adjoint), call(lambda u: M.T @ u), 1e-6)


_RETURNED = {
    "another dtype": lambda v, product: product.float(),
    "another shape": lambda v, product: product[:-1],
    "another device": lambda v, product: product.to("meta"),
    "a column": lambda v, product: product[:, None],
    "None": lambda v, product: None,
    "a list": lambda v, product: product.tolist(),
    "a complex tensor": lambda v, product: product + 0j,
    "a sparse tensor": lambda v, product: product.to_sparse(),
}
for _what, _disturb in _RETURNED.items():

    @fault("Products of another kind", f"{_what} returned by the 6th product", FEW)
    def other_kind(call: Any, disturb: Any = _disturb) -> Seen:
        """Something else than a vector is returned."""
        return with_fault(call, Disturbed(disturb))


@fault("Products of another kind", "a product with an autograd graph", FEW)
def with_graph(call: Any) -> Seen:
    """The product requires grad."""
    M = definite().requires_grad_()

    def product(v: Any) -> Any:
        Happened.now()
        return M @ v

    return with_fault(call, product)


@fault("Products of another kind", "the product shares the memory of the vector", CALLS)
def in_place(call: Any) -> Seen:
    """A v is written into v, which the documentation forbids."""
    M = definite()

    def product(v: Any) -> Any:
        Happened.now()
        return v.copy_(M @ v)

    return with_fault(call, product)


@fault("Products of another kind", "the same buffer is returned by every product", CALLS)
def one_buffer(call: Any) -> Seen:
    """A v is written into one buffer."""
    M, buffer = definite(), torch.empty(120, dtype=torch.float64)

    def product(v: Any) -> Any:
        Happened.now()
        return torch.mv(M, v, out=buffer)

    return with_fault(call, product)


def _raise(error: BaseException) -> Any:
    def disturb(v: Any, product: Any) -> Any:
        raise marked(error)

    return disturb


_RAISED = {
    "an error of the user's": lambda: Injected("a fault of the user's"),
    "RuntimeError": lambda: RuntimeError("a fault of the user's"),
    "ValueError": lambda: ValueError("a fault of the user's"),
    "MemoryError": MemoryError,
    "torch.OutOfMemoryError": lambda: torch.OutOfMemoryError("out of memory"),
    "RecursionError": lambda: RecursionError("too deep"),
    "SystemExit": lambda: SystemExit(3),
}
for _what, _make in _RAISED.items():

    @fault("Products that raise", f"{_what} in the 6th product", FEW)
    def raising(call: Any, make: Any = _make) -> Seen:
        """The product raises; the same operator is right afterwards."""
        return then_right(call, Disturbed(_raise(make())))
