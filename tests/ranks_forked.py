"""New processes for a single job, which take no time to start: for jobs that end a process."""

import contextlib
import io
import os
import pickle
import runpy
import socket
import tempfile
from pathlib import Path

import torch
from torch import distributed

from tests.ranks_pool import TIMEOUT, Place, _plain, forks


def together(size, job, *args):
    """What job(place, *args) gives on each of some new processes; None of one that was killed."""
    return _answers(size, _serve, job, args)


def printed(size, path):
    """What a script prints on each of some new processes, which it joins as under torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return _answers(size, _run, str(path), port)


def _answers(size, target, *args):
    context = forks()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=target, args=(Place(rank, size, None), folder, *args))
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(90)
            assert process.exitcode is not None, "a rank does not end"
        paths = [_path(folder, rank) for rank in range(size)]
        return [pickle.loads(path.read_bytes()) if path.exists() else None for path in paths]


def _path(folder, rank):
    return Path(folder) / f"answer-{rank}"


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
    _path(folder, place.rank).write_bytes(pickle.dumps(answer))
    os._exit(0)  # the group cannot be destroyed where a rank has died


def _run(place, folder, script, port):
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with contextlib.redirect_stdout(io.StringIO()) as output:
        runpy.run_path(script, run_name="__main__")
    _path(folder, place.rank).write_bytes(pickle.dumps(output.getvalue()))
