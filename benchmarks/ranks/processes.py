"""Some processes over gloo on this machine, one thread each."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed


def run(count: int, job: Callable[..., Any], *args: Any) -> list[Any]:
    """What job(rank, *args) returns in each process, within a group of all of them."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(count):
            ours, theirs = context.Pipe()
            place = os.path.join(folder, "store"), rank, count
            process = context.Process(target=_serve, args=(place, theirs, job, args), daemon=True)
            process.start()
            pipes.append(ours)
            processes.append(process)
        answers = [pipe.recv() for pipe in pipes]
        for process in processes:
            process.join()
    return answers


def _serve(place: tuple[str, int, int], pipe: Any, job: Callable[..., Any], args: Any) -> None:
    store, rank, count = place
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=count
    )
    pipe.send(job(rank, *args))
    distributed.destroy_process_group()
