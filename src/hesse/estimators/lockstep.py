# SPDX-License-Identifier: Apache-2.0
"""Lanczos processes in lock-step: each is on its own, but their products are taken together.

A block of products costs less than as many products one after the other; the processes do not know
of each other, and any of them may leave at any time.
"""

from __future__ import annotations

from collections.abc import Sequence

from hesse.estimators.probes import products
from hesse.krylov.lanczos import Lanczos
from hesse.krylov.recurrence import Recurrence
from hesse.operators.algebra import LinearOperator
from hesse.vectors.rows import stacked, transposed

Process = Lanczos | Recurrence


def step_together(
    A: LinearOperator, processes: Sequence[Process], block_size: int, call: str
) -> None:
    """One step of every process, all of A: a product each, `block_size` of them at once."""
    following = [process.following for process in processes]
    rows = stacked(len(following), following) if len(following) > 1 else following[0][None]
    images = transposed(products(A, rows, block_size, call).T)
    for process, image in zip(processes, images, strict=True):
        process.take_in(image)


def has_ended(process: Process) -> bool:
    """Whether the process has filled an invariant subspace: nothing leads on from there."""
    return process.size > 0 and process.is_invariant
