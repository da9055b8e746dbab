"""J v and J'u, where J is the Jacobian of all outputs: Hesse, `torch.func` and curvlinops."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.func import functional_call, jvp, vjp

import hesse
from benchmarks.case import Case
from benchmarks.problem import Params
from benchmarks.subjects.peers_curvlinops import check as check_curvlinops
from benchmarks.subjects.subject import (
    InProcess,
    Run,
    Subject,
    flat,
    flat_leaves,
    needs_parts,
)

MODES = ("auto", "retained-graph", "traced-split", "compiled-split")
QUANTITIES = ("jacobian", "adjoint")


def prepare_hesse(case: Case, quantity: str, mode: str) -> Run:
    """The operator of the outputs, or its transpose."""
    problem, u = case.problem, case.cotangent.reshape(-1)
    J = hesse.jacobian_operator(problem.risk(), problem.params, mode=mode)
    if quantity == "jacobian":
        return InProcess(lambda: J @ case.v, flat)
    # Where the outputs are a vector, u has their form, and so has J'u that of the parameters.
    tree = case.cotangent.ndim == 1
    return InProcess(lambda: J.T @ u, (lambda r: flat_leaves(r.values())) if tree else flat)


def prepare_jvp(case: Case) -> Run:
    """Forward mode, the outputs again for every v."""
    outputs, params, v = _outputs(case), case.problem.params, case.tangents

    def product() -> Tensor:
        with case.differentiable_kernels():
            return jvp(outputs, (params,), (v,))[1]

    return InProcess(product, lambda result: result.reshape(-1))


def prepare_vjp(case: Case) -> Run:
    """The graph of the outputs kept, a backward pass through it for every u."""
    params, u = case.problem.params, case.cotangent
    with case.differentiable_kernels():
        _, pull_back = vjp(_outputs(case), params)
    return InProcess(lambda: pull_back(u)[0], lambda result: flat_leaves(result.values()))


def _outputs(case: Case) -> Callable[[Params], Tensor]:
    parts = case.problem.transformable_parts
    assert parts is not None
    return lambda params: functional_call(parts.model, params, (parts.inputs,))


def prepare_curvlinops(case: Case, quantity: str) -> Run:
    """Its operator of the Jacobian or of the transpose, on flat vectors."""
    import curvlinops

    kind = {"jacobian": "JacobianLinearOperator", "adjoint": "TransposedJacobianLinearOperator"}
    parts = case.problem.transformable_parts
    assert parts is not None
    operator = getattr(curvlinops, kind[quantity])(
        parts.model,
        list(parts.model.parameters()),
        [(parts.inputs, parts.targets)],
        check_deterministic=False,
        num_data=len(parts.inputs),
    )
    direction = case.v if quantity == "jacobian" else case.cotangent.reshape(-1)

    def product() -> Tensor:
        with case.differentiable_kernels():
            return operator @ direction

    return InProcess(product, flat)


SUBJECTS = [
    *(
        Subject(
            *("hesse", quantity, mode, partial(prepare_hesse, quantity=quantity, mode=mode)),
            needs_parts,
            compiled=mode == "compiled-split",
            adaptive=mode == "auto",
        )
        for quantity in QUANTITIES
        for mode in MODES
    ),
    Subject("torch.func", "jacobian", "jvp", prepare_jvp, needs_parts),
    Subject("torch.func", "adjoint", "vjp", prepare_vjp, needs_parts),
    *(
        Subject(
            *("curvlinops", quantity, "operator", partial(prepare_curvlinops, quantity=quantity)),
            check_curvlinops,
        )
        for quantity in QUANTITIES
    ),
]
