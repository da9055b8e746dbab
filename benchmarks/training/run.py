"""One run of a rival on a task: timed, saved every few seconds, resumed where it was cut off."""

from __future__ import annotations

import math
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from benchmarks.training.average import Average
from benchmarks.training.task import Rival, Task

Clock = Literal["wall", "processor"]
"""Whose seconds limit a run."""

_SAVE_EVERY = 20.0  # seconds
_MEASUREMENTS = 100  # of a run


@dataclass
class History:
    """The errors of a run against its seconds, of the wall and of the processor."""

    steps: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    rows: list[tuple[float, float, int, float]] = field(default_factory=list)
    """(seconds, CPU seconds, steps, error)"""

    def elapsed(self, clock: Clock) -> float:
        """The seconds so far."""
        return self.seconds if clock == "wall" else self.cpu_seconds

    def record(self, error: float) -> None:
        """The error now."""
        self.rows.append((self.seconds, self.cpu_seconds, self.steps, error))


def train(
    task: Task,
    rival: Rival,
    seed: int,
    seconds: float,
    folder: Path,
    *,
    most_steps: float = math.inf,
    clock: Clock = "wall",
) -> History:
    """Train for so many seconds, of which those of earlier parts of the run count.

    Every step draws its data from a generator seeded by its number: a run that was cut off
    continues with the data that it would have had. Errors are those of the parameters or of their
    mean over the last steps, whichever is lower, as in Martens & Grosse 2015; the clock stands
    while the mean is taken.
    """
    torch.manual_seed(seed)
    model = (rival.model or task.model)(seed)
    history = History()
    first = _batch(task, rival, seed, 0)
    torch.optim.SGD(model.parameters())  # imports the compiler of torch, outside of the clock
    began = time.perf_counter(), time.process_time()
    optimizer = rival.make(task, model, first)
    _count(history, began)
    path = folder / f"{task.name}-{rival.name.replace('/', '-')}-{seed}.pt"
    average = Average(model)
    _resume(path, model, average, optimizer, history)
    saved = time.perf_counter()
    try:
        while not _is_over(task, history, history.elapsed(clock) >= seconds, most_steps):
            batch = _batch(task, rival, seed, history.steps)
            began = time.perf_counter(), time.process_time()
            rival.step(optimizer, task, model, batch)
            history.steps += 1
            _count(history, began)
            average.take(model, history.steps)
            if history.elapsed(clock) >= len(history.rows) * seconds / _MEASUREMENTS:
                history.record(_error(task, model, average))
                _show(task, rival, seed, history, clock)
            if time.perf_counter() - saved > _SAVE_EVERY:
                _save(path, model, average, optimizer, history)
                saved = time.perf_counter()
        if not history.rows or history.rows[-1][2] != history.steps:
            history.record(_error(task, model, average))
    finally:  # Ctrl-C too
        _save(path, model, average, optimizer, history)
    _show(task, rival, seed, history, clock, end="\n")
    return history


def _batch(task: Task, rival: Rival, seed: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed + 1_000_003 * (step + 1))
    return task.draw(rival.sizes(step), generator)


def _count(history: History, began: tuple[float, float]) -> None:
    history.seconds += time.perf_counter() - began[0]
    history.cpu_seconds += time.process_time() - began[1]


def _is_over(task: Task, history: History, is_late: bool, most_steps: float) -> bool:
    error = history.rows[-1][3] if history.rows else math.inf
    return is_late or error < task.solved or math.isnan(error) or history.steps >= most_steps


def _error(task: Task, model: nn.Module, average: Average) -> float:
    """The lower error of the two; NaN where the parameters have it."""
    now = task.error(model)
    return now if math.isnan(now) else min(now, task.error(average.model))


def _save(path: Path, model: nn.Module, average: Average, optimizer: Any, history: History) -> None:
    """Under another name first, so that a run killed meanwhile keeps the last file."""
    state = {
        "model": model.state_dict(),
        "average": average.model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "history": asdict(history),
    }
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def _resume(
    path: Path, model: nn.Module, average: Average, optimizer: Any, history: History
) -> None:
    if not path.exists():
        return
    state = torch.load(path)
    model.load_state_dict(state["model"])
    average.model.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    vars(history).update(state["history"])


def _show(
    task: Task, rival: Rival, seed: int, history: History, clock: Clock, end: str = ""
) -> None:
    print(
        f"\r{task.name}, {rival.name}, seed {seed}: {history.elapsed(clock):.0f} s, "
        f"step {history.steps}, {task.error_name} {history.rows[-1][3]:.4f}   ",
        end=end,
        flush=True,
    )
