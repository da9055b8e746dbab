"""JAX under `jit`, in a process of its own with an environment of its own.

`HESSE_BENCH_JAX` names the interpreter; by default it is that of `.venv-jax`:

    python3 -m venv .venv-jax && .venv-jax/bin/pip install jax

There is one worker for each case. It takes turns with the other subjects, times itself, and idles
in between; parameters, directions and results travel as .npz files.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.case import BLOCK, Case
from benchmarks.subjects.subject import (
    Run,
    Subject,
    Unavailable,
    flat_leading,
    flat_leaves,
    needs_parts,
)

PYTHON = "HESSE_BENCH_JAX"
"""Environment variable: the Python that has JAX."""

SETTLE = 0.005
"""Seconds before and after a product of the worker: threads that wait spin for a while."""


class JaxWorker:
    """The worker of a case."""

    def __init__(self, case: Case, python: Path) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="hesse-bench-")
        path, self._log = (Path(self.folder.name) / name for name in ("case.npz", "stderr"))
        np.savez(path, **_arrays(case))
        self._process = subprocess.Popen(
            [python, Path(__file__).with_name("jax_worker.py"), path],
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("w"),
            text=True,
        )
        weakref.finalize(self, self._process.kill)
        self.version = self._read()["version"]

    def ask(self, **request: str) -> dict:
        """The answer to a request."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status, lines = self._process.wait(), self._log.read_text().splitlines()
            raise RuntimeError(f"the JAX worker ended with status {status}: {' '.join(lines[-1:])}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer


class JaxRun:
    """A product that the worker takes."""

    def __init__(self, worker: JaxWorker, name: str, names: list[str], vectors: int) -> None:
        self._worker, self._name, self._names, self._vectors = worker, name, names, vectors
        prepared = worker.ask(prepare=name)
        self.first_call: float = prepared["seconds"]
        self.repeated_bytes: int = prepared["repeated_bytes"]

    def seconds(self) -> float:
        time.sleep(SETTLE)
        seconds = self._worker.ask(run=self._name)["seconds"]
        time.sleep(SETTLE)
        return seconds

    def result(self) -> Tensor:
        path = Path(self._worker.folder.name) / "result.npz"
        self._worker.ask(save=self._name, path=str(path))
        with np.load(path) as archive:
            leaves = [torch.from_numpy(archive[name]) for name in self._names]
        return flat_leaves(leaves) if self._vectors == 1 else flat_leading(leaves)


_workers: weakref.WeakKeyDictionary[Case, JaxWorker | str] = weakref.WeakKeyDictionary()


def prepare(case: Case, quantity: str, method: str, vectors: int) -> Run:
    """Compile in the worker."""
    block = f"/{vectors}" if vectors > 1 else ""
    worker, names = _workers[case], list(case.problem.params)
    assert isinstance(worker, JaxWorker)
    return JaxRun(worker, f"{quantity}/{method}{block}", names, vectors)


def check(case: Case, quantity: str) -> None:
    """Start the worker of the case, or say why there is none."""
    if case.problem.jax is None:
        raise Unavailable("the problem has no version in JAX")
    if quantity == "ggn":
        needs_parts(case)
    if case not in _workers:
        _workers[case] = _start(case)
    worker = _workers[case]
    if isinstance(worker, str):
        raise Unavailable(worker)


def _start(case: Case) -> JaxWorker | str:
    """The worker, or the reason why there is none."""
    python = interpreter()
    if not python.exists():
        return f"no JAX: there is no {python}"
    try:
        return JaxWorker(case, python)
    except (OSError, RuntimeError) as error:
        return f"no JAX: {error}"


def interpreter() -> Path:
    """The Python that has JAX."""
    default = Path(__file__).parents[2] / ".venv-jax" / "bin" / "python"
    return Path(os.environ.get(PYTHON, default))


def _environment() -> dict[str, str]:
    """With as many threads as torch has."""
    threads = torch.get_num_threads()
    several = "true" if threads > 1 else "false"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen={several}"
    return os.environ | {"NPROC": str(threads), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def _arrays(case: Case) -> dict[str, np.ndarray]:
    problem = case.problem
    trees = {"params": problem.params, "v": case.tangents, "block": case.leading_block}
    arrays = {
        f"{prefix}:{name}": leaf.numpy() for prefix, tree in trees.items()
        for name, leaf in tree.items()
    }  # fmt: skip
    arrays["function"] = np.asarray(problem.jax)
    if problem.parts is not None:
        arrays["inputs"] = problem.parts.inputs.numpy()
        arrays["targets"] = problem.parts.targets.numpy()
    return arrays


METHODS = (
    ("gradient", "grad", 1),
    ("hessian", "forward-over-reverse", 1),
    ("hessian", "linearize", 1),
    ("hessian", "forward-over-reverse", BLOCK),
    ("hessian", "linearize", BLOCK),
    ("ggn", "one-shot", 1),
    ("ggn", "linearize", 1),
    ("ggn", "linearize", BLOCK),
)

SUBJECTS = [
    Subject(
        "jax",
        quantity,
        method,
        partial(prepare, quantity=quantity, method=method, vectors=vectors),
        partial(check, quantity=quantity),
        vectors,
    )
    for quantity, method, vectors in METHODS
]
