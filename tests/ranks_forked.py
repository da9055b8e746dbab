"""New processes for a single job, which take no time to start: for jobs that end a process."""

import multiprocessing
import os
import pickle
import tempfile
from pathlib import Path

import torch
from torch import distributed

from tests.ranks_pool import TIMEOUT, Place, _plain

# By the server of which all these processes are forks.
_IMPORTED = [
    "tests.ranks_killed",
    "torch.distributed.tensor",
    "torch.distributed.fsdp",
    "torch._dynamo",
]


def together(size, job, *args):
    """What job(place, *args) gives on each of some new processes; None of one that was killed."""
    context = multiprocessing.get_context("forkserver")  # torch is imported once for all of them
    context.set_forkserver_preload(_IMPORTED)
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_serve, args=(Place(rank, size, None), folder, job, args))
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(90)
            assert process.exitcode is not None, "a rank does not end"
        paths = [Path(folder) / f"answer-{rank}" for rank in range(size)]
        return [pickle.loads(path.read_bytes()) if path.exists() else None for path in paths]


def _serve(place, folder, job, args):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=place.rank,
        world_size=place.size,
        timeout=TIMEOUT,
    )
    torch.manual_seed(place.rank)
    place.group = distributed.group.WORLD
    answer = _plain(job(place, *args))
    Path(folder, f"answer-{place.rank}").write_bytes(pickle.dumps(answer))
    os._exit(0)  # the group cannot be destroyed where a rank has died
