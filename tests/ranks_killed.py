"""Runs of several processes of which one is killed by SIGKILL, and that go on from their files."""

import json
import multiprocessing
import os
import signal
import tempfile
from pathlib import Path
from unittest import mock

import torch
from torch import distributed

import hesse
from hesse import checkpoint
from hesse.ranks import RankError, Ranks
from tests import hessian_free_jobs, shards_files
from tests.ranks_pool import TIMEOUT, Place, _plain, bits
from tests.shards_jobs import Problem

SIZE = 2
RUNS = ["eigsh", "trace", "cg", "hessian-free"]
KINDS = ["replicated", "sharded"]
_SLOW_TO_IMPORT = ["torch.distributed.tensor", "torch.distributed.fsdp", "torch._dynamo"]
CASES = [(run, kind) for run in RUNS for kind in KINDS]


def together(job, *args):
    """What job(place, *args) gives on each of `SIZE` new processes; None of one that was killed."""
    context = multiprocessing.get_context("forkserver")  # torch is imported once for all of them
    context.set_forkserver_preload([__name__, *_SLOW_TO_IMPORT])
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_serve, args=(rank, folder, job, args)) for rank in range(SIZE)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(90)
            assert process.exitcode is not None, "a rank does not end"
        paths = [Path(folder) / f"answer-{rank}" for rank in range(SIZE)]
        return [json.loads(path.read_text()) if path.exists() else None for path in paths]


def _serve(rank, folder, job, args):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=SIZE, timeout=TIMEOUT
    )
    torch.manual_seed(rank)
    answer = job(Place(rank, SIZE, distributed.group.WORLD), *args)
    Path(folder, f"answer-{rank}").write_text(json.dumps(answer))
    os._exit(0)  # the group cannot be destroyed where a rank has died


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
