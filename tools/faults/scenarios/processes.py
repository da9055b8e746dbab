# SPDX-License-Identifier: Apache-2.0
"""Threads, processes, streams and callbacks."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import hesse
from hesse.errors import Status
from tools.faults.fault import Happened, Injected, Seen, error_of, fault
from tools.faults.scenarios.calls import DOUBLE, definite, operator, randn, seeded
from tools.faults.scenarios.models import batches, network

_GROUP = "Processes and streams"


def _operators() -> dict[str, Callable[[], Any]]:
    """Operators of several kinds, each made when it is wanted."""
    A = randn(50, 20)

    def f(x: Tensor) -> Tensor:
        return torch.tanh(A @ x).pow(2).sum()

    def of_a_risk(make: Any) -> Any:
        risk = hesse.Risk(network(), nn.MSELoss(), batches())
        return make(risk, risk.params)

    M = definite()
    return {
        "hessian_operator(f, x) @ v": lambda: hesse.hessian_operator(f, randn(20, seed=1)),
        "hessian_operator(risk, params) @ v": lambda: of_a_risk(hesse.hessian_operator),
        "ggn_operator(risk, params) @ v": lambda: of_a_risk(hesse.ggn_operator),
        "function_operator(matvec, n) @ v": lambda: operator(lambda v: M @ v),
        "dense_operator(M) @ v": lambda: hesse.dense_operator(M),
    }


@fault(_GROUP, "eight threads that call one operator at once", _operators())
def threads(make: Callable[[], Any]) -> Seen:
    """From the first product on, which prepares the others."""
    A, fresh = make(), make()
    vectors = [randn(A.shape[0], seed=k) for k in range(8)]
    expected = [fresh @ v for v in vectors]
    products: dict[int, list[Tensor]] = {k: [] for k in range(8)}
    errors: list[BaseException] = []
    barrier = threading.Barrier(8)

    def work(k: int) -> None:
        barrier.wait()
        try:
            for _ in range(20):
                products[k].append(A @ vectors[k])
        except BaseException as error:
            errors.append(error)

    started = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in started:
        Happened.now()
        thread.start()
    for thread in started:
        thread.join()
    if errors:
        raise errors[0]
    theirs = torch.stack([e for e in expected for _ in range(20)])
    return Seen(torch.stack([p for k in range(8) for p in products[k]]), theirs, 1e-8)


@fault(_GROUP, "threads that run solvers at once", "solve, eigsh, trace")
def threads_of_solvers() -> Seen:
    """Each in a thread of its own, with operators of its own."""
    M, results, begins = definite(), {}, threading.Lock()

    def all_three() -> list[Tensor]:
        A = operator(lambda v: M @ v)
        return [
            hesse.solve(A, randn(120, seed=1), "cg", rtol=1e-10).x,
            hesse.eigsh(A, 2, generator=seeded()).values,
            torch.tensor(hesse.trace(A, generator=seeded()).value),
        ]

    def work(k: int) -> None:
        with begins:  # after a fork torch fails where two threads enter its pool at once
            torch.aminmax(torch.ones(2))
        results[k] = all_three()

    started = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in started:
        Happened.now()
        thread.start()
    for thread in started:
        thread.join()
    expected = all_three()
    return Seen([results.get(k) for k in range(4)], [expected] * 4, 1e-12)


@fault(_GROUP, "an operator that is used after a fork", _operators())
def after_fork(make: Callable[[], Any]) -> Seen:
    """In a child, after products in the parent."""
    A = make()
    v = randn(A.shape[0])
    expected = [A @ v for _ in range(5)][-1]
    ours, theirs = multiprocessing.get_context("fork").Pipe()

    def child() -> None:
        Happened.now()
        theirs.send_bytes((A @ v).numpy().tobytes())

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    Happened.now()
    got = torch.frombuffer(bytearray(ours.recv_bytes()), dtype=DOUBLE)
    process.join()
    return Seen(got, expected, 1e-12)


@fault(_GROUP, "an operator that is copied after products", _operators())
def copied(make: Callable[[], Any]) -> Seen:
    """By copy.deepcopy, and back from a copy."""
    A = make()
    v = randn(A.shape[0])
    expected = [A @ v for _ in range(5)][-1]
    Happened.now()
    return Seen(copy.deepcopy(A) @ v, expected, 1e-12)


@fault(_GROUP, "an operator that is pickled after products", "hessian_operator(risk, params) @ v")
def pickled() -> Seen:
    """As multiprocessing with spawn does."""
    A = _operators()["hessian_operator(risk, params) @ v"]()
    v = randn(A.shape[0])
    expected = [A @ v for _ in range(5)][-1]
    Happened.now()
    return Seen(pickle.loads(pickle.dumps(A)) @ v, expected, 1e-12)


# -- Callbacks and streams -------------------------------------------------------------------------

_RUNS: dict[str, Callable[..., Any]] = {
    "eigsh": lambda A, **o: hesse.eigsh(A, 2, generator=seeded(), **o).values,
    "solve, cg": lambda A, **o: hesse.solve(A, randn(120, seed=1), "cg", rtol=1e-10, **o).x,
    "trace": lambda A, **o: torch.tensor(
        hesse.trace(A, method="hutchinson", max_products=60, generator=seeded(), **o).value
    ),
    "spectral_density": lambda A, **o: hesse.spectral_density(A, generator=seeded(), **o).density,
    "minimize": lambda A, **o: (
        hesse.minimize(
            lambda x: (x**4).sum() + x @ (definite() @ x), torch.ones(120, dtype=DOUBLE), **o
        ).x
    ),
}


@fault(_GROUP, "a callback that raises", _RUNS)
def raising_callback(run: Callable[..., Any]) -> Seen:
    """The error reaches the caller, and the next call is right."""
    A = hesse.dense_operator(definite())
    expected = run(A)

    def callback(state: Any) -> None:
        Happened.now()
        raise Injected("in the callback")

    error = error_of(lambda: run(A, callback=callback))
    return Seen(run(A), expected, 1e-12, error=error)


@fault(_GROUP, "a callback that writes to the state it is given", "solve, cg")
def writing_callback() -> Seen:
    """x and the residual are overwritten: the residual is verified at the end."""

    def callback(state: Any) -> None:
        if state.iteration == 5:
            Happened.now()
            state.x.zero_()

    A = hesse.dense_operator(definite())
    b = randn(120, seed=1)
    solution = hesse.solve(A, b, "cg", rtol=1e-9, callback=callback)
    return Seen(solution.x, torch.linalg.solve(definite(), b), 1e-5, status=solution.status)


class _Closed:
    """A stream whose reader has gone away."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        Happened.now()
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self) -> None:
        Happened.now()
        raise BrokenPipeError(32, "Broken pipe")


@fault(_GROUP, "a progress bar whose stream is closed", _RUNS)
def closed_stream(run: Callable[..., Any]) -> Seen:
    """The computation is worth more than its bar."""
    A = hesse.dense_operator(definite())
    expected = run(A)
    with contextlib.redirect_stderr(_Closed()):  # type: ignore[type-var]
        got = run(A, progress=True)
    return Seen(got, expected, 1e-12)


@fault(_GROUP, "a progress bar without stderr", "eigsh")
def no_stderr() -> Seen:
    """As in a process without a console."""
    A = hesse.dense_operator(definite())
    Happened.now()
    with contextlib.redirect_stderr(None):
        got = _RUNS["eigsh"](A, progress=True)
    return Seen(got, _RUNS["eigsh"](A), 1e-12)


@fault(_GROUP, "stdout and stderr closed", "eigsh")
def closed_descriptors() -> Seen:
    """The file descriptors themselves."""
    A = hesse.dense_operator(definite())
    sys.stdout.flush()
    os.close(1)
    os.close(2)
    Happened.now()
    got = _RUNS["eigsh"](A, progress=True)
    return Seen(got, _RUNS["eigsh"](A), 1e-12)


@fault(_GROUP, "a clock that is set back during a run", "solve, max_seconds=100")
def clock_back() -> Seen:
    """Limits do not depend on the time of day."""
    import time

    A, b = hesse.dense_operator(definite()), randn(120, seed=1)
    now = time.time

    def back() -> float:
        return now() - 1e6

    time.time = back
    Happened.now()
    solution = hesse.solve(A, b, "cg", rtol=1e-10, max_seconds=100.0)
    return Seen(solution.x, torch.linalg.solve(definite(), b), 1e-6, status=solution.status)


__all__ = ["Status"]
