"""Hesse's subjects: every mode of its Hessian and Gauss-Newton operators.

A product is `H @ v` on a flat vector, `H.matmat(V)` on a block, with all that comes with it: checks
that the arguments fit and that the result is finite.
"""

from __future__ import annotations

from functools import partial

import hesse
from benchmarks.case import BLOCK, Case
from benchmarks.subjects.subject import InProcess, Run, Subject, always, flat, needs_parts

REPEATED = ("retained-graph", "traced-split", "compiled-split")
ONE_SHOT = (
    "reverse-over-reverse",
    "forward-over-reverse",
    "reverse-over-forward",
    "finite-difference",
)


def prepare_hessian(case: Case, mode: str, vectors: int = 1) -> Run:
    """The operator of f by a mode."""
    problem = case.problem
    return _run(case, hesse.hessian_operator(problem.f, problem.params, mode=mode), vectors)


def prepare_ggn(case: Case, mode: str, vectors: int = 1) -> Run:
    """The Gauss-Newton operator by a mode."""
    problem = case.problem
    return _run(case, hesse.ggn_operator(problem.risk(), problem.params, mode=mode), vectors)


def _run(case: Case, operator: hesse.LinearOperator, vectors: int) -> Run:
    if vectors == 1:
        return InProcess(lambda: operator @ case.v, flat)
    return InProcess(lambda: operator.matmat(case.block), flat)


def _subject(quantity: str, mode: str, vectors: int = 1) -> Subject:
    prepare, check = {
        "hessian": (prepare_hessian, always),
        "ggn": (prepare_ggn, needs_parts),
    }[quantity]
    return Subject(
        "hesse",
        quantity,
        mode,
        partial(prepare, mode=mode, vectors=vectors),
        check,
        vectors,
        compiled=mode == "compiled-split",
        adaptive=mode == "auto",
    )


SUBJECTS = [
    *(_subject("hessian", mode) for mode in ("auto", *REPEATED, *ONE_SHOT)),
    *(_subject("hessian", mode, BLOCK) for mode in ("auto", *REPEATED)),
    *(_subject("ggn", mode) for mode in ("auto", *REPEATED)),
    *(_subject("ggn", mode, BLOCK) for mode in ("auto", *REPEATED)),
]
