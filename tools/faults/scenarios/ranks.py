# SPDX-License-Identifier: Apache-2.0
"""Faults on one of two ranks, as the other sees them."""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn

import hesse
from hesse.ranks import Ranks
from tools.faults.fault import Happened, Seen, error_of, fault
from tools.faults.scenarios.calls import randn
from tools.faults.scenarios.models import batches, network

_GROUP = "Ranks"
_SECONDS = 5.0


class _Loss(nn.MSELoss):
    """A square loss that fails when it is told to."""

    fails: Callable[[], Any] | None = None

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        loss = super().forward(input, target)
        return loss if self.fails is None else loss * self.fails()


def _raise(error: BaseException) -> Any:
    raise error


def _kill() -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


_FAULTS: dict[str, Callable[[], Any]] = {
    "raises": lambda: _raise(KeyError("a fault of the user's")),
    "runs out of memory": lambda: _raise(torch.OutOfMemoryError("out of memory")),
    "gives NaN": lambda: float("nan"),
    "is killed": _kill,
    "does not answer": lambda: time.sleep(4 * _SECONDS),
}


@contextlib.contextmanager
def _rank(number: int) -> Iterator[Any]:
    """A rank of two."""
    timeout = datetime.timedelta(seconds=_SECONDS)
    distributed.init_process_group(
        "gloo", init_method=f"file://{os.getcwd()}/store", rank=number, world_size=2,
        timeout=timeout,
    )  # fmt: skip
    yield Ranks(distributed.group.WORLD, timeout)


def _with_other(job: Callable[[int, Any], Any]) -> Any:
    """What a job gives on rank 0; rank 1 is another process, which ends with this one."""

    def other() -> None:
        with _rank(1) as ranks, contextlib.suppress(Exception):
            job(1, ranks)

    child = multiprocessing.get_context("fork").Process(target=other, daemon=True)
    child.start()
    with _rank(0) as ranks:
        return job(0, ranks)


def _half(rank: int) -> Any:
    return batches()[2 * rank : 2 * rank + 2]


def _whole() -> Tensor:
    risk = hesse.Risk(network(), nn.MSELoss(), batches())
    H = hesse.hessian_operator(risk, risk.params)
    return H @ randn(H.shape[0], seed=5)


for _what, _fails in _FAULTS.items():

    @fault(_GROUP, f"the other rank {_what}", "hessian_operator(risk, params) @ v")
    def other_fails(fails: Any = _fails) -> Seen:
        """In a product; if it lives, the next product of both is right."""

        def job(rank: int, ranks: Any) -> Any:
            loss = _Loss()
            risk = hesse.Risk(network(), loss, _half(rank), group=ranks)
            H = hesse.hessian_operator(risk, risk.params, mode="reverse-over-reverse")
            v = randn(H.shape[0], seed=5)
            loss.fails = fails if rank == 1 else None
            error = error_of(lambda: H @ v)
            loss.fails = None
            lives = fails in (_FAULTS["raises"], _FAULTS["gives NaN"])
            return error, H @ v if lives else _whole()

        Happened.now()
        error, again = _with_other(job)
        return Seen([again, float(error is None)], [_whole(), 0.0], 1e-10, error=error)


_DIFFERENCES: dict[str, Callable[[int, Any], Any]] = {
    "other parameters": lambda rank, ranks: _made(rank, ranks, scale=1.0 + 1e-12 * rank),
    "another weight_decay": lambda rank, ranks: _made(rank, ranks, weight_decay=0.1 * (1 + rank)),
    "another vector": lambda rank, ranks: _made(rank, ranks) @ _vector(rank),
}


def _vector(rank: int) -> Tensor:
    return randn(sum(p.numel() for p in network().parameters()), seed=5 + rank)


def _made(rank: int, ranks: Any, scale: float = 1.0, data: Any = None, **options: Any) -> Any:
    data = _half(rank) if data is None else data
    risk = hesse.Risk(network(), nn.MSELoss(), data, group=ranks, **options)
    return hesse.hessian_operator(risk, {k: scale * p for k, p in risk.params.items()})


for _what, _job in _DIFFERENCES.items():

    @fault(_GROUP, f"the other rank has {_what}", "hessian_operator(risk, params) @ v")
    def other_differs(job: Any = _job) -> Seen:
        """The ranks do not ask for the same."""
        Happened.now()
        _with_other(job)
        return Seen(0.0, 1.0)


@fault(_GROUP, "the other rank has no data", "hessian_operator(risk, params) @ v")
def no_data() -> Seen:
    """The data of this rank are all there are."""

    def job(rank: int, ranks: Any) -> Tensor:
        return _made(rank, ranks, data=[] if rank else None) @ _vector(0)

    Happened.now()
    risk = hesse.Risk(network(), nn.MSELoss(), _half(0))
    alone = hesse.hessian_operator(risk, risk.params) @ _vector(0)
    return Seen(_with_other(job), alone, 1e-10)
