# SPDX-License-Identifier: Apache-2.0
"""Lanczos processes in lock-step: independent of each other, but their products are blocked.

A block of products takes less time than as many products one after the other. Any process may end
at any time.
"""

from __future__ import annotations

from collections.abc import Sequence

from hesse.estimators.probes import products
from hesse.krylov.lanczos_process import LanczosProcess
from hesse.krylov.recurrence import Recurrence
from hesse.operators.algebra import LinearOperator
from hesse.progress import uninterrupted
from hesse.vectors.rows import stacked, transposed

Process = LanczosProcess | Recurrence


def step_together(A: LinearOperator, processes: Sequence[Process], block_size: int) -> None:
    """One step of every process of A: a product each, `block_size` of them at once."""
    following = [process.following for process in processes]
    rows = stacked(len(following), following) if len(following) > 1 else following[0][None]
    images = transposed(products(A, rows, block_size).T)
    with uninterrupted():  # all processes take the step, or none
        for process, image in zip(processes, images, strict=True):
            process.take_in(image)


def has_ended(process: Process) -> bool:
    """Whether the process has filled an invariant subspace, so that there is no next step."""
    return process.size > 0 and process.is_invariant
