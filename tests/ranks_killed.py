"""Runs of several processes of which one is killed by SIGKILL, and that go on from their files."""

import os
import signal
from pathlib import Path
from unittest import mock

import hesse
from hesse import checkpoint
from hesse.ranks import RankError, Ranks
from tests import hessian_free_jobs, shards_files
from tests.ranks_pool import _plain, bits
from tests.shards_jobs import Problem

SIZE = 2
RUNS = ["eigsh", "trace", "cg", "hessian-free"]
KINDS = ["replicated", "sharded"]
CASES = [(run, kind) for run in RUNS for kind in KINDS]


def finished(place, cases, folder=None):
    """The bits that runs end with, as text, and how many events each had."""
    found = []
    for case in cases:
        with _counted() as events:
            found.append([_bits(place, case, folder), len(events)])
    return found


def killed(place, case, folder, victim, at):
    """Run until one rank dies at an event; the error of the others."""
    try:
        with _counted(at if place.rank == victim else None):
            _bits(place, case, folder)
    except RankError as error:
        return type(error).__name__
    return "none"


def _bits(place, case, folder):
    run, kind = case
    file = {} if folder is None else {"checkpoint": Path(folder) / f"{run}-{kind}"}
    with mock.patch.object(checkpoint, "_PAUSE", 0):  # each step is saved
        if run == "hessian-free":
            kind = {"sharded": "fsdp"}.get(kind, kind)
            found = hessian_free_jobs.steps(place, kind, "ekfac", 3, split="even", **file)
            found = found["x"], found["damping"]
        else:
            problem = _problem(place, kind)
            H = hesse.hessian_operator(problem.risk, problem.params, mode="retained-graph")
            found = shards_files.RUNS[run](H, problem, **file)
    return bits(_plain(found)).hex()


def _problem(place, kind):
    problem = Problem("ragged", place)
    if kind == "replicated":
        problem.params = problem.risk.params
        problem.space = hesse.hessian_operator(problem.risk).domain
    return problem


class _counted:
    """Counts products, gradients, values and files that are put in place; may die at one."""

    def __init__(self, at=None):
        self._at, self._events = at, []
        places = [(Ranks, "sum_of"), (Ranks, "share_out"), (Path, "replace"), (os, "replace")]
        self._patches = [
            mock.patch.object(owner, name, self._noted(getattr(owner, name)))
            for owner, name in places
        ]

    def _noted(self, function):
        def noted(*args, **options):
            self._events.append(None)
            if len(self._events) == self._at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return noted

    def __enter__(self):
        for patch in self._patches:
            patch.start()
        return self._events

    def __exit__(self, *_):
        for patch in self._patches:
            patch.stop()
