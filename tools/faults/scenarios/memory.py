# SPDX-License-Identifier: Apache-2.0
"""Faults of the memory: bits that flip in what is kept, and memory that runs out."""

from __future__ import annotations

import resource
from typing import Any

import torch
from torch import nn

import hesse
from tools.faults.fault import Happened, Seen, error_of, fault, marked
from tools.faults.scenarios.calls import randn, seeded
from tools.faults.scenarios.models import batches, network

_GROUP = "Memory"
_CALLS = {
    "hessian_operator(risk, params) @ v": hesse.hessian_operator,
    "ggn_operator(risk, params) @ v": hesse.ggn_operator,
}


@fault(_GROUP, "a bit that flips in a kept residual", _CALLS)
def bit_flip(make: Any) -> Seen:
    """An exponent bit, without a write by torch; noticed at the next look at the bits."""
    risk = hesse.Risk(network(), nn.MSELoss(), batches(64))
    operator = make(risk, risk.params, mode="traced-split")
    v = randn(operator.shape[0], seed=5)
    expected = [operator @ v for _ in range(1500)][-1]
    residuals = operator._at._prepared._settled[0][2].residuals
    given = {t.untyped_storage().data_ptr() for batch in batches(64) for t in batch}
    own = [t for t in residuals if t.untyped_storage().data_ptr() not in given and t.numel() > 16]
    own[-1].detach().as_strided((16,), (1,)).numpy().view("int64")[7] ^= 1 << 60
    Happened.now()
    error = error_of(lambda: [operator @ v for _ in range(3000)])
    return Seen(make(risk, risk.params) @ v, expected, 1e-10, error=error)


@fault(_GROUP, "a bit that flips during eigsh", "eigsh(H, 3)")
def bit_flip_in_a_run() -> Seen:
    """The run ends with an error, not with eigenvalues of another matrix."""
    risk = hesse.Risk(network(), nn.MSELoss(), batches(64))
    H = hesse.hessian_operator(risk, risk.params, mode="traced-split")

    def flip(state: Any) -> None:
        if state.products > 1000 and not Happened.times:
            residual = H._at._prepared._settled[0][2].residuals[-1]
            residual.detach().as_strided((1,), (1,)).numpy().view("int64")[0] ^= 1 << 60
            Happened.now()

    pairs = hesse.eigsh(
        H, 3, "SA", method=hesse.Lanczos(basis_size=6), rtol=1e-15, max_products=4000,
        generator=seeded(), callback=flip,
    )  # fmt: skip
    return Seen(pairs.values, torch.linalg.eigvalsh(H.to_dense())[:3], 1e-6, status=pairs.status)


_LARGE = 400_000_000


def _limited(call: Any) -> BaseException | None:
    """The error of a call with little memory left."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _LARGE, resource.RLIM_INFINITY))
    try:
        error = error_of(call)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    if error is not None and "memory" in f"{type(error).__name__} {error}".lower():
        Happened.now()
        marked(error)
    return error


@fault(_GROUP, "memory that runs out in a product", "hessian_operator(f, x) @ v")
def out_of_memory() -> Seen:
    """The address space is limited; afterwards the same operator is right."""
    A, x, v = randn(3000, 200), randn(200, seed=1), randn(200, seed=2)

    def f(y: torch.Tensor) -> torch.Tensor:
        return torch.tanh(A @ y).repeat(8000).exp().mean()

    H = hesse.hessian_operator(f, x)
    error = _limited(lambda: H @ v)
    small = hesse.hessian_operator(lambda y: torch.tanh(A @ y).exp().mean(), x) @ v
    return Seen(hesse.hessian_operator(f, x) @ v, small, 1e-8, error=error)


@fault(_GROUP, "memory that runs out for the basis", "eigsh(A, 3)")
def out_of_memory_for_the_basis() -> Seen:
    """The vectors of a Krylov method do not fit."""
    n = 2_000_000
    d = torch.linspace(0.0, 1.0, n, dtype=torch.float64)
    d[-3:] = torch.tensor([2.0, 3.0, 4.0])
    A = hesse.diagonal_operator(d)
    error = _limited(lambda: hesse.eigsh(A, 3, generator=seeded()))
    return Seen(0.0, 0.0, error=error)


@fault(_GROUP, "a memory_budget that is too small", "ggn_operator(risk, params, memory_budget=)")
def impossible_budget() -> Seen:
    """A budget that nothing fits into."""
    Happened.now()
    risk = hesse.Risk(network(), nn.MSELoss(), batches())
    G = hesse.ggn_operator(risk, risk.params, memory_budget=10)
    return Seen(G @ randn(G.shape[0]), hesse.ggn_operator(risk, risk.params) @ randn(G.shape[0]),
                1e-8)  # fmt: skip
