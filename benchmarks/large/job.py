# SPDX-License-Identifier: Apache-2.0
"""One solver on one large function, in a process of its own, so that its memory can be seen.

`python -m benchmarks.large.job SOLVER FUNCTION N MAX_SECONDS` prints a line of JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import hesse
from benchmarks.large.functions import FUNCTIONS
from benchmarks.suite.counted import Counted, OverLimit
from benchmarks.suite.peers import with_galahad
from benchmarks.suite.solvers import Ending, with_scipy

RTOL = 1e-9
"""Of the gradient at the start."""


def with_hesse(method: str) -> Callable[[Counted, Tensor], tuple[Ending, int]]:
    """`hesse.minimize` in its default form; also the products that it counts."""

    def solve(f: Counted, x: Tensor) -> tuple[Ending, int]:
        name: Any = method
        r: Any = hesse.minimize(
            f.f, x, name, rtol=RTOL, callback=lambda _: f.seconds > f.max_seconds
        )
        return Ending(r.x, r.success, r.status.name), r.nhev

    return solve


def with_peer(solve: Any) -> Callable[[Counted, Tensor], tuple[Ending, int]]:
    """A solver of the suite, to this tolerance."""

    def counted(f: Counted, x: Tensor) -> tuple[Ending, int]:
        try:
            ending = solve(f, x, rtol=RTOL)
        except OverLimit:
            ending = Ending(f.best(x), False, "time")
        return ending, f.counts.products

    return counted


SOLVERS: dict[str, Callable[[Counted, Tensor], tuple[Ending, int]]] = {
    **{f"hesse {m}": with_hesse(m) for m in ("auto", "newton-direct", "trust-krylov", "lbfgs")},
    **{
        f"scipy {m}": with_peer(with_scipy(m))
        for m in ("Newton-CG", "trust-ncg", "trust-krylov", "L-BFGS-B")
    },
    **{f"galahad {m}": with_peer(with_galahad(m)) for m in ("tru", "arc")},
}


def run(solver: str, function: str, n: int, max_seconds: float) -> dict[str, Any]:
    """Seconds, products, memory, and where it ended."""
    f, x = FUNCTIONS[function](100)
    SOLVERS[solver](Counted(f, max_seconds=20.0), x)  # imports, compilers
    f, x = FUNCTIONS[function](n)
    start = float(_gradient(f, x).norm())
    before = _peak()
    counted = Counted(f, max_seconds=max_seconds)
    began = time.process_time()
    ending, products = SOLVERS[solver](counted, x)
    seconds = time.process_time() - began
    vectors = (_peak() - before) / (8 * len(x))
    return {
        "solver": solver,
        "function": function,
        "n": len(x),
        "seconds": seconds,
        "products": products,
        "vectors": vectors,
        "gradient": float(_gradient(f, ending.x).norm()) / start,
        "value": float(f(ending.x)),
        "message": ending.message,
    }


def _gradient(f: Any, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(f(leaf), leaf)[0]


def _peak() -> int:
    """The most memory that this process ever had, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    name, function, n, max_seconds = sys.argv[1:]
    print("\n" + json.dumps(run(name, function, int(n), float(max_seconds))))
