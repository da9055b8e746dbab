# SPDX-License-Identifier: Apache-2.0
"""Every fault in a process of its own, with a time limit: a crash and a hang are verdicts too."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from tools.faults.fault import Fault, Outcome, Verdict, judge

_FORK = multiprocessing.get_context("fork")


def run(faults: Iterable[Fault], show: Callable[[Fault, Outcome], None]) -> dict[str, Outcome]:
    """The outcome of every fault, by its name."""
    outcomes = {}
    for fault in faults:
        outcomes[fault.name] = run_one(fault)
        show(fault, outcomes[fault.name])
    return outcomes


def run_one(fault: Fault) -> Outcome:
    """The outcome of one fault."""
    ours, theirs = _FORK.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        child = _FORK.Process(target=_child, args=(fault, theirs, folder))
        child.start()
        theirs.close()
        try:
            return _received(fault, child, ours)
        finally:
            _end(child)


def _received(fault: Fault, child: Any, ours: Connection) -> Outcome:
    if not ours.poll(fault.timeout):
        return Outcome(Verdict.HANG, f"no end after {fault.timeout:.0f} s")
    try:
        verdict, says = ours.recv()
    except EOFError:
        child.join()
        return Outcome(Verdict.CRASH, f"the process ended with {child.exitcode}")
    return Outcome(Verdict(verdict), says)


def _child(fault: Fault, answer: Connection, folder: str) -> None:
    """Judge a fault in a folder of its own."""
    os.setsid()  # so that its own children end with it
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.manual_seed(0)
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        outcome = judge(fault)
    answer.send((outcome.verdict.value, outcome.says.replace(folder, ".")))
    answer.close()
    os._exit(0)  # no exit handlers of the parent


def _end(child: Any) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.join()


def kill_after(seconds: float, work: Callable[[], Any]) -> bool:
    """Run this in a process that is killed after so many seconds; whether it had to be."""
    process = _FORK.Process(target=work)
    process.start()
    deadline = time.monotonic() + seconds
    process.join(max(deadline - time.monotonic(), 0.0))
    alive = process.is_alive()
    if alive and process.pid is not None:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return alive
