"""Products with Fisher matrices: Hesse's exact and empirical ones, and curvlinops' empirical one.

curvlinops knows the loss modules of torch alone. Its Monte-Carlo Fisher matrix takes draws of its
own, so that there is no one product to compare with; an empirical product does the same work.
"""

from __future__ import annotations

from functools import partial

from torch import nn

import hesse
from benchmarks.case import Case
from benchmarks.subjects.peers_curvlinops import check as check_curvlinops
from benchmarks.subjects.subject import (
    InProcess,
    Run,
    Subject,
    Unavailable,
    flat,
    flat_leaves,
    needs_parts,
)

MODES = ("auto", "retained-graph", "traced-split", "compiled-split")
KINDS = {"fisher": "exact", "empirical": "empirical"}


def prepare_hesse(case: Case, quantity: str, mode: str) -> Run:
    """The operator of a kind by a mode."""
    problem = case.problem
    F = hesse.fisher_operator(problem.risk(), problem.params, KINDS[quantity], mode=mode)
    return InProcess(lambda: F @ case.v, flat)


def prepare_curvlinops(case: Case) -> Run:
    """Its operator, on vectors as lists of tensors."""
    import curvlinops

    parts = case.problem.transformable_parts
    assert parts is not None
    operator = curvlinops.EFLinearOperator(
        parts.model,
        parts.loss,
        list(parts.model.parameters()),
        [(parts.inputs, parts.targets)],
        check_deterministic=False,
        num_data=len(parts.inputs),
    )
    direction = list(case.tangents.values())

    def product():
        with case.differentiable_kernels():
            return operator @ direction

    return InProcess(product, flat_leaves)


def _check_loss(case: Case) -> None:
    check_curvlinops(case)
    loss = case.problem.parts.loss
    if not isinstance(loss, (nn.MSELoss, nn.CrossEntropyLoss, nn.BCEWithLogitsLoss)):
        raise Unavailable(f"not for {type(loss).__name__}")


SUBJECTS = [
    *(
        Subject(
            *("hesse", quantity, mode, partial(prepare_hesse, quantity=quantity, mode=mode)),
            needs_parts,
            compiled=mode == "compiled-split",
            adaptive=mode == "auto",
        )
        for quantity in KINDS
        for mode in MODES
    ),
    Subject("curvlinops", "empirical", "operator", prepare_curvlinops, _check_loss),
]
