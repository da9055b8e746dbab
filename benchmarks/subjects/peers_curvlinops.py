"""curvlinops 3: its Hessian and GGN operators, on one vector and on eight.

Its check for determinism, which costs four gradients and two products, is off. Vectors are given
as lists of tensors, its own format, so that nothing is joined or split.
"""

from __future__ import annotations

from functools import partial

from benchmarks.case import BLOCK, Case
from benchmarks.subjects.subject import (
    InProcess,
    Run,
    Subject,
    Unavailable,
    flat_leaves,
    flat_trailing,
    needs_parts,
)

OPERATORS = {"hessian": "HessianLinearOperator", "ggn": "GGNLinearOperator"}


def prepare(case: Case, quantity: str, vectors: int = 1) -> Run:
    """The operator on the one batch."""
    import curvlinops

    parts = case.problem.transformable_parts
    assert parts is not None
    operator = getattr(curvlinops, OPERATORS[quantity])(
        parts.model,
        parts.loss,
        list(parts.model.parameters()),
        [(parts.inputs, parts.targets)],
        check_deterministic=False,
        num_data=len(parts.inputs),
    )
    direction = list(case.tangents.values()) if vectors == 1 else case.trailing_block

    def product():
        with case.differentiable_kernels():
            return operator @ direction

    return InProcess(product, flat_leaves if vectors == 1 else flat_trailing)


def check(case: Case) -> None:
    """Raise unless curvlinops is there and the problem is a model with a loss."""
    needs_parts(case)
    try:
        import curvlinops  # noqa: F401
    except ImportError as error:
        raise Unavailable(f"not installed: {error}") from error


SUBJECTS = [
    Subject(
        "curvlinops",
        quantity,
        "operator",
        partial(prepare, quantity=quantity, vectors=vectors),
        check,
        vectors,
    )
    for quantity in OPERATORS
    for vectors in (1, BLOCK)
]
