"""A process of `compare`, which imports one of the two sources: `compare_worker CLOCK`.

It answers each request, a line of JSON on stdin, by one line of JSON on stdout. It uses only what
both sources have: public names with arguments of the same meaning.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

import hesse
from benchmarks.measure import describe
from benchmarks.models import MODELS
from benchmarks.models.classifier import classifier
from benchmarks.problem import Problem

PROBLEMS = MODELS | {"classifier": classifier}

TOTAL = 20
"""Products of a total, a trace and a solution."""
MANY = 1000
"""Products that are announced for an operator that is kept."""

DAMPING = 0.1

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Worker:
    """A model and an operator, kept from request to request."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def load(self, model: str) -> dict[str, Any]:
        """Make a model; `name:count` takes its data in so many batches."""
        name, _, count = model.partition(":")
        self.problem: Problem = PROBLEMS[name]()
        self.batches, self.operator = int(count or 1), None
        self.v = torch.randn(self.problem.n, generator=torch.Generator().manual_seed(0))
        return {"quantities": ["hessian", "ggn"] if self.problem.parts else ["hessian"]}

    def prepare(self, quantity: str, mode: str) -> dict[str, Any]:
        """Make the operator whose products are repeated."""
        self.quantity, self.chosen, self.operator = quantity, mode, None
        gc.collect()
        self.operator = self._operator()
        # So that auto mode traces at once: when it would by itself depends on the clock.
        announce = getattr(self.operator, "announce", None) or self.operator.expect
        announce(MANY)
        return {}

    def product(self, count: int) -> dict[str, Any]:
        """The seconds of a product of the kept operator, on average over so many."""
        start = self._clock()
        for _ in range(count):
            _ = self.operator @ self.v
        seconds = self._clock() - start
        return {"seconds": seconds / count, "products": 1, "mode": _mode(self.operator)}

    def first(self) -> dict[str, Any]:
        """An operator and its first product."""
        return self._timed(lambda A: A @ self.v) | {"products": 1}

    def total(self) -> dict[str, Any]:
        """An operator and its first products."""

        def run(A: Any) -> None:
            for _ in range(TOTAL):
                _ = A @ self.v

        return self._timed(run)

    def trace(self) -> dict[str, Any]:
        """An operator and an estimate of its trace."""
        return self._timed(
            lambda A: hesse.trace(A, rtol=0.0, max_products=TOTAL, generator=_generator())
        )

    def solve(self) -> dict[str, Any]:
        """An operator and some steps towards a solution of a damped system."""
        method = "minres" if self.quantity == "hessian" else "cg"
        damping = DAMPING * hesse.identity_operator(self.problem.n)
        steps = TOTAL - 1  # the last product recomputes the residual
        return self._timed(
            lambda A: hesse.solve(A + damping, self.v, method, rtol=1e-9, max_iterations=steps)
        )

    def eigsh(self) -> dict[str, Any]:
        """Three eigenvalues of the kept operator, by the method of Lanczos."""
        return self._timed(
            lambda A: hesse.eigsh(A, 3, rtol=1e-2, generator=_generator()), self.operator
        )

    def density(self) -> dict[str, Any]:
        """The density of the eigenvalues of the kept operator, from two probes of 64 steps."""
        return self._timed(
            lambda A: hesse.spectral_density(A, probes=2, generator=_generator()), self.operator
        )

    def _operator(self) -> Any:
        problem = self.problem
        if problem.parts is None:
            return hesse.hessian_operator(problem.f, problem.params, mode=self.chosen)
        make = hesse.hessian_operator if self.quantity == "hessian" else hesse.ggn_operator
        return make(problem.risk(self.batches), problem.params, mode=self.chosen)

    def _timed(self, run: Callable[[Any], Any], operator: Any = None) -> dict[str, Any]:
        """A run on an operator, or on a new one: seconds, products, and how they are taken now."""
        gc.collect()
        start = self._clock()
        A = operator or self._operator()
        result = run(A)
        seconds = self._clock() - start
        products = getattr(result, "products", TOTAL)
        return {"seconds": seconds, "products": products, "mode": _mode(A)}


def _mode(A: Any) -> str:
    """The mode, and oneDNN where it takes the large matrix products, which is measured."""
    onednn = any("by oneDNN" in note for note in A.plan.notes)
    return A.mode + (" by oneDNN" if onednn else "")


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def main(clock: str) -> None:
    """Answer requests until stdin ends."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    worker = Worker(CLOCKS[clock])
    print(json.dumps({"source": hesse.__file__}), flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            answer = getattr(worker, name)(*arguments)
        except Exception as error:
            answer = {"failed": describe(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
