"""The same compositions, and the gradient, behind `torch.compile`: minutes of compiling.

What torch compiles for reverse over forward ends the whole process on some models (torch 2.13,
signal 11). So it is first tried in another one: `peers_compiled MODEL`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import torch
from torch.func import grad

from benchmarks.case import Case
from benchmarks.problem import Params
from benchmarks.subjects.peers_transforms import (
    Product,
    forward_over_reverse,
    gauss_newton,
    reverse_over_forward,
)
from benchmarks.subjects.subject import InProcess, Run, Subject, always, flat_leaves, needs_parts

LIMIT = 300.0
"""Seconds for the try."""


def _prepare(product_of: Callable[[Case], Product]) -> Callable[[Case], Run]:
    def prepare(case: Case) -> Run:
        compiled, params, v = _compile(product_of(case)), case.problem.params, case.tangents

        def call() -> Params:
            with case.differentiable_kernels():
                return compiled(params, v)

        return InProcess(call, lambda result: flat_leaves(result.values()))

    return prepare


def prepare_gradient(case: Case) -> Run:
    """The gradient by torch's own choice of kernels."""
    compiled, params = _compile(grad(case.problem.transformable)), case.problem.params
    return InProcess(lambda: compiled(params), lambda result: flat_leaves(result.values()))


def _compile(function: Callable) -> Callable:
    """Not after a reset, which would make the subjects before this one compile again."""
    return torch.compile(function, dynamic=False)


def _survives(case: Case) -> None:
    """Raise if the process ends that compiles reverse over forward and runs it."""
    command = [sys.executable, "-m", __name__, case.problem.name, str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, timeout=LIMIT, check=False)
    if done.returncode < 0:
        raise RuntimeError(f"what torch compiles crashes with signal {-done.returncode}")


def main(model: str, threads: str) -> None:
    """Take two products by compiled reverse over forward."""
    from benchmarks.models import MODELS

    torch.set_num_threads(int(threads))
    run = _prepare(reverse_over_forward)(Case.of(MODELS[model]()))
    for _ in range(2):
        run.seconds()


SUBJECTS = [
    Subject("torch.compile", quantity, method, prepare, check, compiled=True)
    for quantity, method, prepare, check in (
        ("gradient", "func.grad", prepare_gradient, always),
        ("hessian", "forward-over-reverse", _prepare(forward_over_reverse), always),
        ("hessian", "reverse-over-forward", _prepare(reverse_over_forward), _survives),
        ("ggn", "jvp-vjp", _prepare(gauss_newton), needs_parts),
    )
]

if __name__ == "__main__":
    main(*sys.argv[1:])
