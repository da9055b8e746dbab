"""Runs with sharded vectors that are stopped, saved, and go on from the files."""

import contextlib
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import torch

import hesse
from hesse import checkpoint
from hesse.checkpoint import Checkpoint
from hesse.saving import sharded_file
from tests.ranks_faults import BAD, _error
from tests.shards_faults import _along
from tests.shards_jobs import Problem, seed


def _shifted(H, c):
    return H + c * hesse.identity_operator(H.shape[0])


def _solve(H, p, method, shift, **limits):
    found = hesse.solve(
        *(_shifted(H, shift), p.vector(), method), rtol=1e-9, max_iterations=12, **limits
    )
    return [p.whole(found.x), found.iterations, found.products]


def _pairs(H, p, **limits):
    method = hesse.Lanczos(basis_size=12, search_missed=False)
    found = hesse.eigsh(H, 2, method=method, rtol=1e-8, generator=seed(), **limits)
    return [found.values, p.whole(found.vectors).abs(), found.products]


def _trace(H, p, **limits):
    found = hesse.trace(
        H, method="hutch++", block_size=2, max_products=60, generator=seed(), **limits
    )
    return [found.value, found.products]


def _diagonal(H, p, **limits):
    found = hesse.diagonal(H, max_products=24, block_size=2, generator=seed(), **limits)
    return [p.whole(found.value), found.products]


def _minimum(method):
    def run(H, p, **limits):
        found = hesse.minimize(
            *(p.risk, p.params, method), max_iterations=4, mode="retained-graph", **limits
        )
        return [p.whole(found.x), found.fun, found.nfev]

    return run


RUNS = {
    "eigsh": _pairs,
    "cg": lambda H, p, **limits: _solve(H, p, "cg", 1.0, **limits),
    "minres": lambda H, p, **limits: _solve(H, p, "minres", -0.2, **limits),
    "trace": _trace,
    "diagonal": _diagonal,
    "newton": _minimum("newton-cg"),
    "lbfgs": _minimum("lbfgs"),
}


class _Killed(Exception):
    pass


def killed(place, folder, names):
    """How many runs end after all; they are killed in their fourth step, and saved before."""
    with mock.patch.object(checkpoint, "_PAUSE", 0):
        return len(finished(place, folder, names, last=4))


def finished(place, folder, names, turned=False, last=None):
    """The numbers of runs, and their steps; with a folder each has a checkpoint there."""
    p = Problem("ragged", place)
    if turned:  # cut along the last dimensions
        p.params = {name: leaf.redistribute(placements=[_along(leaf.ndim - 1)])
                    for name, leaf in p.params.items()}  # fmt: skip
        p.space = hesse.hessian_operator(p.risk, p.params).domain
    H = hesse.hessian_operator(p.risk, p.params, mode="retained-graph")
    found = {}
    for name in names:
        limits = {} if folder is None else {"checkpoint": Path(folder) / name}
        steps = []
        limits["callback"] = lambda state, steps=steps: _count(steps, state, last)
        with contextlib.suppress(_Killed):
            found[name] = RUNS[name](H, p, **limits), len(steps)
    return found


def _count(steps, state, last):
    steps.append(state)
    if len(steps) == last:
        raise _Killed


# -- Files -----------------------------------------------------------------------------------------


@dataclass
class _State:
    x: torch.Tensor | None = None
    T: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    number: int = 0


def _state(p, number):
    return _State(p.vector(number), torch.full((4,), number, dtype=torch.float64), number)


def _file(place, p, folder):
    return Checkpoint(Path(folder) / "run", p.hessian, function="test", b=p.vector())


def _read(place, p, folder):
    """The number of the save that is read, and whether its vector is that of the save."""
    state = _State()
    _file(place, p, folder).resume(state)
    return state.number, bool((state.x == p.vector(state.number)).all())


def interrupted(place, folder, fault):
    """What is read after a save that failed, how many warnings there were, and what is there."""
    p = Problem("ragged", place)
    file = _file(place, p, folder)
    file.save(_state(p, 1), now=True)
    write = sharded_file.write

    def failing(path, header, tensors):
        if (place.rank == BAD and fault == "part") or (path.name == "run" and fault == "manifest"):
            raise OSError("no space")
        return write(path, header, tensors)

    with mock.patch.object(sharded_file, "write", failing), warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        file.save(_state(p, 2), now=True)
    found = _read(place, p, folder)
    file.save(_state(p, 3), now=True)
    return found, _read(place, p, folder), _names(place, folder)


def _names(place, folder):
    place.ranks().gather(0.0)  # all have written
    return sorted(path.name for path in Path(folder).iterdir())


def damaged(place, folder):
    """The errors of resuming where the part of one rank is of another save, or is not there."""
    p = Problem("ragged", place)
    file = _file(place, p, folder)
    file.save(_state(p, 1), now=True)
    part = Path(folder) / f"run.save-1.rank-{BAD}-of-{place.size}"
    before = part.read_bytes()
    file.save(_state(p, 2), now=True)
    part = Path(folder) / f"run.save-2.rank-{BAD}-of-{place.size}"
    errors = {"right": _error(lambda: _read(place, p, folder))}
    for name, content in {"another": before, "gone": None}.items():
        place.ranks().gather(0.0)
        if place.rank == BAD:
            part.unlink() if content is None else part.write_bytes(content)
        place.ranks().gather(0.0)
        errors[name] = _error(lambda: _read(place, p, folder))
    return errors


def others(place, folder):
    """The errors of runs that are not the one that was saved."""
    p = Problem("ragged", place)
    file = _file(place, p, folder)
    file.save(_state(p, 1), now=True)
    path, b = Path(folder) / "run", p.vector()
    whole = hesse.hessian_operator(p.risk)
    calls = {
        "vector": lambda: Checkpoint(path, p.hessian, function="test", b=2 * b).resume(_State()),
        "no vector": lambda: Checkpoint(path, p.hessian, function="test", b=None).resume(_State()),
        "operator": lambda: Checkpoint(path, p.ggn, function="test", b=b).resume(_State()),
        "whole": lambda: Checkpoint(path, whole, function="test", b=b).resume(_State()),
        "no folder": lambda: Checkpoint(path / "there", p.hessian),
    }
    return {name: _error(call) for name, call in calls.items()}
