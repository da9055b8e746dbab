# SPDX-License-Identifier: Apache-2.0
"""The calls that faults are made to happen in, as functions of an operator, and what they share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import hesse
from hesse.errors import HesseError, Status
from tools.faults.fault import Happened, Seen, error_of

DOUBLE, N = torch.float64, 120


class Answer(NamedTuple):
    """The numbers of a result, and its status if it has one."""

    numbers: Any
    status: Status | None = None


def seeded(seed: int = 0) -> torch.Generator:
    """A generator."""
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers that are always the same."""
    return torch.randn(*shape, generator=seeded(seed), dtype=DOUBLE)


def definite(n: int = N) -> Tensor:
    """A symmetric positive definite matrix with eigenvalues from 0.01 to 4."""
    M = randn(n, n)
    return M @ M.T / n + 0.01 * torch.eye(n, dtype=DOUBLE)


def _solve(method: Any) -> Callable[[Any], Answer]:
    def call(A: Any) -> Answer:
        solution = hesse.solve(A, randn(N, seed=1), method, rtol=1e-9)
        return Answer(solution.x, solution.status)

    return call


def _pairs(
    function: Callable[..., Any], *arguments: Any, **options: Any
) -> Callable[[Any], Answer]:
    def call(A: Any) -> Answer:
        pairs = function(A, *arguments, generator=seeded(), **options)
        return Answer(pairs.values if function is hesse.eigsh else pairs.S, pairs.status)

    return call


def _estimate(function: Callable[..., Any], *arguments: Any, **options: Any) -> Callable:
    def call(A: Any) -> Answer:
        estimate = function(A, *arguments, generator=seeded(), **options)
        return Answer(estimate.value, estimate.status)

    return call


def _function_of(A: Any) -> Answer:
    estimate = hesse.matrix_function("sqrt", A, randn(N, seed=1))
    return Answer(estimate.value, estimate.status)


def _density(A: Any) -> Answer:
    density = hesse.spectral_density(A, generator=seeded())
    return Answer(density.density, density.status)


CALLS: dict[str, Callable[[Any], Answer]] = {
    "A @ v": lambda A: Answer(torch.stack([A @ randn(N, seed=k) for k in range(6)])),
    "solve, cg": _solve("cg"),
    "solve, minres": _solve("minres"),
    "solve, lsmr": _solve("lsmr"),
    "solve, gmres": _solve("gmres"),
    "eigsh": _pairs(hesse.eigsh, 3),
    "eigsh, lobpcg": _pairs(hesse.eigsh, 3, method="lobpcg"),
    "svds": _pairs(hesse.svds, 3),
    "trace": _estimate(hesse.trace),
    "trace, hutchinson": _estimate(hesse.trace, method="hutchinson", max_products=60),
    "diagonal": _estimate(hesse.diagonal),
    "logdet": _estimate(hesse.logdet),
    "norm": _estimate(hesse.norm),
    "norm, 2": _estimate(hesse.norm, 2),
    "matrix_function": _function_of,
    "spectral_density": _density,
}

FEW = {name: CALLS[name] for name in ("A @ v", "solve, cg", "eigsh", "trace")}
LONG = {name: call for name, call in CALLS.items() if name != "A @ v"}


def operator(product: Callable[[Tensor], Any], n: int = N, *, symmetric: bool = True) -> Any:
    """The operator of a user's function."""
    return hesse.function_operator(product, n, symmetric=symmetric, dtype=DOUBLE)


class Disturbed:
    """The product with a matrix; at the `at`-th call another function takes its place, once.

    With `always` it does so from then on.
    """

    def __init__(
        self, disturb: Callable[[Tensor, Tensor], Any], at: int = 6, *, always: bool = False
    ) -> None:
        self.M, self.disturb, self.at, self.always = definite(), disturb, at, always
        self.calls = 0

    def __call__(self, v: Tensor) -> Any:
        self.calls += 1
        product = self.M @ v
        if self.calls == self.at or (self.always and self.calls > self.at):
            Happened.now()
            return self.disturb(v, product)
        return product


def with_fault(
    call: Callable[[Any], Answer], product: Callable[[Tensor], Any], matrix: Tensor | None = None
) -> Seen:
    """What a call sees of an operator with a faulty product, and of the right one."""
    answer = call(operator(product))
    M = definite() if matrix is None else matrix
    try:
        right = call(operator(lambda v: M @ v, symmetric=matrix is None))
    except HesseError:  # there is no right answer
        right = Answer(math.nan)
    return Seen(answer.numbers, right.numbers, 1e-6, status=answer.status, usual=right.status)


def then_right(call: Callable[[Any], Answer], product: Callable[[Tensor], Any]) -> Seen:
    """The error of a call, and the numbers of the same call after it."""
    A = operator(product)
    error = error_of(lambda: call(A))
    return Seen(call(A).numbers, call(operator(lambda v: definite() @ v)).numbers, 1e-12,
                error=error)  # fmt: skip
