# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and kill -9 in long runs, which continue from their files to the same bits."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import hesse
from hesse import apps, checkpoint
from hesse.errors import Status
from hesse.saving import tensor_file
from tools.faults.fault import Happened, Seen, agree, error_of, fault, marked
from tools.faults.runner import kill_after
from tools.faults.scenarios import settings
from tools.faults.scenarios.applications import START, chain, energy, influences
from tools.faults.scenarios.calls import DOUBLE
from tools.faults.scenarios.files import RUNS, scores, trained
from tools.faults.scenarios.models import batches

_GROUP = "Ctrl-C and kill -9"


@fault(_GROUP, "kill -9 at random moments, and the same call again", RUNS, slow=True, timeout=1200)
def killed(run: Callable[..., Any]) -> Seen:
    """Killed and continued, again and again, until it was killed so many times."""
    checkpoint._PAUSE = 0  # type: ignore[attr-defined]  # so that it is killed while it saves, too
    tensor_file._flush = lambda path: None  # which matters where the machine is killed
    expected = run(None)
    began = time.monotonic()
    run("whole")
    seconds, moments, path = time.monotonic() - began, random.Random(0), Path("run")
    while Happened.times < settings.moments:
        if kill_after(moments.uniform(0.0, 1.2 * seconds), lambda: run(path)):
            Happened.now()
            continue
        got = run(path)
        if not agree(got, expected, 0.0):
            return Seen(got, expected)
        path.unlink()
    return Seen(run(path), expected)


class _Interrupt:
    """SIGINT from within a call of the user's code, once."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            Happened.now()
            signal.raise_signal(signal.SIGINT)


_PRODUCTS = {
    "eigsh": lambda A, path: hesse.eigsh(
        A, 3, "SA", method=hesse.Lanczos(basis_size=20), generator=_seeded(), checkpoint=path),
    "solve, cg": lambda A, path: hesse.solve(A, _b(), "cg", rtol=1e-11, checkpoint=path),
    "solve, minres": lambda A, path: hesse.solve(A, _b(), "minres", rtol=1e-11, checkpoint=path),
    "solve, gmres": lambda A, path: hesse.solve(A, _b(), "gmres", rtol=1e-11, checkpoint=path),
    "solve, lsmr": lambda A, path: hesse.solve(A, _b(), "lsmr", rtol=1e-11, checkpoint=path),
    "trace": lambda A, path: hesse.trace(
        A, method="hutchinson", rtol=0.0, max_products=200, generator=_seeded(), checkpoint=path),
    "spectral_density": lambda A, path: hesse.spectral_density(
        A, probes=4, method=hesse.LanczosDensity(25), generator=_seeded(), checkpoint=path),
}  # fmt: skip


def _seeded() -> Any:
    from tools.faults.scenarios.calls import seeded

    return seeded()


def _b() -> Any:
    from tools.faults.scenarios.calls import randn

    return randn(120, seed=1)


def _numbers(result: Any) -> Any:
    for name in ("vectors", "x", "density"):
        if hasattr(result, name):
            return getattr(result, name)
    return result.value


@fault(_GROUP, "Ctrl-C in a product, and the same call again", _PRODUCTS)
def interrupted(call: Callable[..., Any]) -> Seen:
    """The status says so, the file holds the state, and the rest comes to the same bits."""
    from tools.faults.scenarios.calls import definite, operator

    M, interrupt = definite(), _Interrupt(25)

    def product(v: Any) -> Any:
        interrupt()
        return M @ v

    whole = call(operator(lambda v: M @ v), None)
    broken = call(operator(product), "run")
    rest = call(operator(lambda v: M @ v), "run")
    if not agree(_numbers(rest), _numbers(whole), 0.0):
        return Seen(_numbers(rest), _numbers(whole))
    return Seen(_numbers(rest), _numbers(whole), status=broken.status, usual=whole.status)


_ITERATIONS = {name: run for name, run in RUNS.items() if name.startswith(("minimize", "least"))}


@fault(_GROUP, "Ctrl-C in an iteration, and the same call again", _ITERATIONS)
def interrupted_minimum(run: Callable[..., Any]) -> Seen:
    """The call ends in spite of Ctrl-C, and the rest comes to the same bits."""
    interrupt = _Interrupt(6)

    def callback(state: Any) -> None:
        interrupt()

    run("run", callback=callback)
    return Seen(run("run"), run(None), status=Status.INTERRUPTED)


class _InterruptedLoader:
    """Data whose loader is interrupted in a later sweep."""

    def __init__(self) -> None:
        self.interrupt = _Interrupt(8)

    def __iter__(self) -> Any:
        self.interrupt()
        yield from batches()


@fault(_GROUP, "Ctrl-C in a product, and the same call again", "influence")
def interrupted_influence() -> Seen:
    """As above, in a sweep of the data."""
    data = _InterruptedLoader()
    found: list[Any] = []
    error = error_of(lambda: found.append(influences("run", data=data)))
    if isinstance(error, KeyboardInterrupt):
        marked(error)
    status = found[0].solution.status if found else None
    return Seen(scores("run", data=data), scores(None), error=error, status=status)


_SEARCHES: dict[str, Callable[..., Any]] = {
    "saddle": lambda **o: apps.saddle(energy, START, rigid="none", **o),
    "modes": lambda **o: apps.modes(
        chain, torch.zeros(40, dtype=DOUBLE), k=2, rigid="none", max_products=500, **o
    ),
}


@fault(_GROUP, "Ctrl-C in an iteration, and the next call", _SEARCHES)
def interrupted_search(search: Callable[..., Any]) -> Seen:
    """The status says so; the next call is right."""
    interrupt = _Interrupt(1)

    def callback(state: Any) -> None:
        interrupt()

    broken, again, whole = search(callback=callback), search(), search()
    ours, theirs = (_found(result) for result in (again, whole))
    return Seen(ours, theirs, 1e-8, status=broken.status, usual=whole.status)


def _found(result: Any) -> Any:
    return result.eigenvalues if hasattr(result, "eigenvalues") else result.x


@fault(_GROUP, "Ctrl-C in a step, and the next step", "HessianFree")
def interrupted_training() -> Seen:
    """KeyboardInterrupt goes on to the caller, whose loop it is; the model is as before."""
    expected = trained(None)
    began = time.monotonic()
    trained("whole")
    seconds = time.monotonic() - began
    for part in (0.5, 0.7, 0.9):
        signal.setitimer(signal.ITIMER_REAL, part * seconds)
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        try:
            trained("run")
        except KeyboardInterrupt:
            Happened.now()
        signal.setitimer(signal.ITIMER_REAL, 0.0)
    return Seen(trained("run"), expected)
