# SPDX-License-Identifier: Apache-2.0
"""Faults of the file system, and checkpoints that are not what they should be."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import hesse
from hesse import checkpoint
from hesse.saving import tensor_file
from tools.faults.fault import Happened, Seen, fault
from tools.faults.scenarios.applications import influences
from tools.faults.scenarios.calls import DOUBLE, definite, randn, seeded
from tools.faults.scenarios.minimisers import METHODS
from tools.faults.scenarios.models import batches, network

_GROUP = "Checkpoints"


def eigenvalues(path: Any, **options: Any) -> list[Tensor]:
    """Eigenpairs, with a checkpoint."""
    method = hesse.Lanczos(basis_size=20)
    pairs = hesse.eigsh(
        definite(), 3, "SA", method=method, generator=seeded(1), checkpoint=path, **options
    )
    return [pairs.values, pairs.vectors, torch.tensor(pairs.products)]


def trace(path: Any, **options: Any) -> list[Tensor]:
    """A trace, with a checkpoint."""
    estimate = hesse.trace(
        definite(), method="hutchinson", rtol=0.0, max_products=300, generator=seeded(3),
        checkpoint=path, **options,
    )  # fmt: skip
    return [torch.tensor(estimate.value), torch.tensor(estimate.standard_error)]


def solution(path: Any, **options: Any) -> list[Tensor]:
    """A system, with a checkpoint."""
    result = hesse.solve(
        definite(), randn(120, seed=1), "cg", rtol=1e-11, checkpoint=path, **options
    )
    return [result.x, torch.tensor(result.products), torch.tensor(result.history)]


_START = torch.tensor([-1.2, 1.0] * 5, dtype=DOUBLE)


def minimum(path: Any, method: Any = "auto", f: Any = None, **options: Any) -> list[Tensor]:
    """A minimum, with a checkpoint."""
    f = _rosenbrock if f is None else f
    result = hesse.minimize(f, _START, method, checkpoint=path, **options)
    return [result.x, torch.tensor([result.nit, result.nhev])]


def _valleys(x: Tensor) -> Tensor:
    return torch.cat([10 * (x[1:] - x[:-1] ** 2), 1 - x[:-1]])


def _rosenbrock(x: Tensor) -> Tensor:
    return _valleys(x).square().sum()


def fit(path: Any, r: Any = _valleys, **options: Any) -> list[Tensor]:
    """Least squares, with a checkpoint."""
    result = hesse.least_squares(r, _START, checkpoint=path, **options)
    return [result.x, torch.tensor(result.nit)]


def scores(path: Any, **options: Any) -> list[Tensor]:
    """Influences, with a checkpoint."""
    with hesse.deterministic():
        found = influences(path, **options)
    return [torch.zeros(0) if found.scores is None else found.scores]


def trained(path: Any, steps: int = 6) -> list[Tensor]:
    """A network after some steps of HessianFree, with a checkpoint."""
    model = network()
    optimizer = hesse.HessianFree(hesse.Risk(model, nn.MSELoss(), batches()), checkpoint=path)
    while optimizer.param_groups[0]["steps"] < steps:
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


RUNS: dict[str, Callable[..., list[Tensor]]] = {
    "eigsh": eigenvalues,
    "trace": trace,
    "solve, cg": solution,
    "minimize": minimum,
    "HessianFree": trained,
    **{f"minimize, {m}": partial(minimum, method=m) for m in METHODS if m != "trust-cg"},
    "least_squares": fit,
    "influence": scores,
}

# -- Where nothing can be written ------------------------------------------------------------------


@fault(_GROUP, "a disk that is full from the second save on", RUNS)
def full_disk(run: Callable[..., Any]) -> Seen:
    """The run goes on to its end; the first file stays."""
    checkpoint._PAUSE = 0  # type: ignore[attr-defined]  # save at every step
    saves: list[int] = []
    save = tensor_file.save_file

    def full(*arguments: Any, **options: Any) -> None:
        saves.append(1)
        if len(saves) > 1:
            Happened.now()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(*arguments, **options)

    tensor_file.save_file = full
    return Seen(run("run"), run(None))


@fault(_GROUP, "a folder that is removed during the run", RUNS)
def folder_removed(run: Callable[..., Any]) -> Seen:
    """As above."""
    checkpoint._PAUSE = 0  # type: ignore[attr-defined]
    os.mkdir("folder")
    replace = os.replace

    def removed(*arguments: Any) -> None:
        replace(*arguments)
        Happened.now()
        shutil.rmtree("folder", ignore_errors=True)

    tensor_file.os.replace = removed  # type: ignore[attr-defined]
    return Seen(run("folder/run"), run(None))


def _make_file() -> str:
    Path("file").write_text("in the place of a folder")
    return "file/run"


def _make_folder() -> str:
    Path("run").mkdir()
    return "run"


def _make_pipe() -> str:
    os.mkfifo("run")
    return "run"


_PLACES: dict[str, Callable[[], str]] = {
    "a folder that does not exist": lambda: "no/folder/run",
    "a file in the place of the folder": _make_file,
    "a folder in the place of the file": _make_folder,
    "a pipe in the place of the file": _make_pipe,
    "/dev/full": lambda: "/dev/full",
    "a folder that the system allows nobody to write to": lambda: "/proc/run",
}
for _what, _place in _PLACES.items():

    @fault(_GROUP, f"the path of the checkpoint: {_what}", "eigsh")
    def unwritable(place: Any = _place) -> Seen:
        """Refused before anything is computed."""
        Happened.now()
        return Seen(eigenvalues(place()), eigenvalues(None))


# -- Files that are not what they should be --------------------------------------------------------


def _flipped(data: bytes, place: int) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 4
    return bytes(changed)


def _newer(data: bytes) -> bytes:
    old, new = rb"\"format\": 5", rb"\"format\": 6"
    assert old in data
    return data.replace(old, new)


# The same calls, which end early.
_READERS: dict[str, tuple[Callable[..., Any], dict[str, int]]] = {
    "eigsh": (eigenvalues, {"max_products": 60}),
    "minimize, lbfgs": (partial(minimum, method="lbfgs"), {"max_iterations": 10}),
    "least_squares": (fit, {"max_iterations": 5}),
    "influence": (scores, {"max_products": 20}),
}
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut off in its header": lambda data: data[:200],
    "cut off in its tensors": lambda data: data[:-1000],
    "with a flipped bit in its header": lambda data: _flipped(data, 45),
    "with a flipped bit in a tensor": lambda data: _flipped(data, -20),
    "longer than it was": lambda data: data + bytes(100),
    "text": lambda data: b"not a checkpoint\n" * 100,
    "of a newer version": _newer,
    "of zeros": lambda data: bytes(len(data)),
}
for _what, _damage in DAMAGES.items():

    @fault(_GROUP, f"a file that is {_what}", _READERS)
    def damaged(reader: Any, damage: Any = _damage) -> Seen:
        """Refused, and left as it is."""
        run, limits = reader
        run("run", **limits)
        data = damage(Path("run").read_bytes())
        Path("run").write_bytes(data)
        Happened.now()
        return Seen(run("run"), run(None))


@fault(_GROUP, "a safetensors file of a model", _READERS)
def foreign(reader: Any) -> Seen:
    """A file of something else."""
    save_file({"weight": torch.ones(3)}, "run")
    Happened.now()
    return Seen(reader[0]("run"), reader[0](None))


@fault(_GROUP, "a pickle", _READERS)
def pickled(reader: Any) -> Seen:
    """A file of torch.save."""
    torch.save({"state": torch.ones(3)}, "run")
    Happened.now()
    return Seen(reader[0]("run"), reader[0](None))


_OTHERS: dict[str, Callable[[], Any]] = {
    "of another function": lambda: trace("run"),
    "of another operator": lambda: hesse.eigsh(
        2 * definite(), 3, "SA", method=hesse.Lanczos(basis_size=20), checkpoint="run"),
    "of other arguments": lambda: hesse.eigsh(definite(), 2, checkpoint="run"),
    "of another dtype": lambda: hesse.eigsh(definite().float(), 3, "SA", checkpoint="run"),
}  # fmt: skip
for _what, _other in _OTHERS.items():

    @fault(_GROUP, f"a checkpoint {_what}", "eigsh")
    def other_run(other: Any = _other) -> Seen:
        """Refused: it would be the answer to another question."""
        other()
        Happened.now()
        return Seen(eigenvalues("run"), eigenvalues(None))


_RUNS_OF_OTHERS: dict[str, tuple[Callable[[], Any], Callable[..., Any]]] = {
    "minimize, with the file of another method": (
        lambda: minimum("run", "trust-krylov", max_iterations=5), partial(minimum, method="lbfgs")),
    "minimize, with the file of another f": (
        lambda: minimum("run", f=lambda x: (x**4).sum(), max_iterations=3), minimum),
    "least_squares, with the file of another r": (
        lambda: fit("run", lambda x: _valleys(x) + 1.0, max_iterations=3), fit),
    "influence, with the file of another damping": (
        lambda: influences("run", damping=0.5, max_products=20), scores),
}  # fmt: skip


@fault(_GROUP, "a checkpoint of another run", _RUNS_OF_OTHERS)
def other_question(pair: Any) -> Seen:
    """Refused, as above."""
    pair[0]()
    Happened.now()
    return Seen(pair[1]("run"), pair[1](None))


@fault(_GROUP, "two processes that save to one file", "eigsh", slow=True)
def two_processes() -> Seen:
    """Each ends with its own numbers, and the file is one of theirs."""
    import multiprocessing

    checkpoint._PAUSE = 0  # type: ignore[attr-defined]
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=lambda: _quietly("run")) for _ in range(2)]
    for child in children:
        Happened.now()
        child.start()
    for child in children:
        child.join()
    codes = torch.tensor([float(child.exitcode or 0) for child in children])
    return Seen([codes, *eigenvalues("run")], [torch.zeros(2), *eigenvalues(None)])


def _quietly(path: str) -> None:
    import warnings

    warnings.simplefilter("ignore")
    eigenvalues(path)
