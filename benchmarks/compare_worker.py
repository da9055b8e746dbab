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
        return {}

    def product(self, count: int) -> dict[str, Any]:
        """The seconds of a product of the kept operator, on average over so many."""
        seconds = self._timed(lambda: [self.operator @ self.v for _ in range(count)])[1]
        return {"seconds": seconds / count, "products": 1}

    def mode(self) -> dict[str, Any]:
        """How the kept operator takes products now; which kernels, it measures by a clock."""
        onednn = any("by oneDNN" in note for note in self.operator.plan.notes)
        return {"mode": self.operator.mode + (" by oneDNN" if onednn else "")}

    def total(self) -> dict[str, Any]:
        """An operator and its first products."""

        def run() -> None:
            A = self._operator()
            for _ in range(TOTAL):
                _ = A @ self.v

        gc.collect()
        return {"seconds": self._timed(run)[1], "products": TOTAL}

    def trace(self) -> dict[str, Any]:
        """An operator and an estimate of its trace."""
        return self._counted(
            lambda: hesse.trace(
                self._operator(), rtol=0.0, max_products=TOTAL, generator=_generator()
            )
        )

    def solve(self) -> dict[str, Any]:
        """An operator and some steps towards a solution of a damped system."""
        method = "minres" if self.quantity == "hessian" else "cg"
        identity = hesse.identity_operator(self.problem.n)
        return self._counted(
            lambda: hesse.solve(
                *(self._operator() + DAMPING * identity, self.v, method),
                rtol=1e-9,
                max_iterations=TOTAL - 1,  # and the product that recomputes the residual
            )
        )

    def eigsh(self) -> dict[str, Any]:
        """Three eigenvalues of the kept operator, by the method of Lanczos."""
        return self._counted(
            lambda: hesse.eigsh(self.operator, 3, rtol=1e-2, generator=_generator())
        )

    def density(self) -> dict[str, Any]:
        """The density of the eigenvalues of the kept operator, from two probes of 64 steps."""
        return self._counted(
            lambda: hesse.spectral_density(self.operator, probes=2, generator=_generator())
        )

    def _operator(self) -> Any:
        problem = self.problem
        if problem.parts is None:
            return hesse.hessian_operator(problem.f, problem.params, mode=self.chosen)
        make = hesse.hessian_operator if self.quantity == "hessian" else hesse.ggn_operator
        return make(problem.risk(self.batches), problem.params, mode=self.chosen)

    def _timed(self, run: Callable[[], Any]) -> tuple[Any, float]:
        start = self._clock()
        result = run()
        return result, self._clock() - start

    def _counted(self, run: Callable[[], Any]) -> dict[str, Any]:
        """The seconds of a run, and the products that its result says it took."""
        gc.collect()
        result, seconds = self._timed(run)
        return {"seconds": seconds, "products": result.products}


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
