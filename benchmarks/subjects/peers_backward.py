"""Plain autograd: the gradient, and products by double backward as they are written by hand.

`pyhessian` keeps the graph of the gradient, as `pyhessian.hessian` does (its `utils.py`: one
`backward(create_graph=True)`, then `autograd.grad` with `retain_graph=True` for every product); the
package itself is not needed. `backpack` is `backpack.hessianfree.ggnvp`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.case import BLOCK, Case
from benchmarks.subjects.subject import (
    InProcess,
    Run,
    Subject,
    Unavailable,
    flat_leading,
    flat_leaves,
    needs_parts,
)


def prepare_gradient(case: Case) -> Run:
    """The gradient, without a graph, by torch's own choice of kernels."""
    leaves = case.leaves()

    def gradient():
        return torch.autograd.grad(case.value(leaves), leaves)

    return InProcess(gradient, flat_leaves)


def prepare_differentiable_gradient(case: Case) -> Run:
    """The gradient by the kernels that have second derivatives."""
    leaves = case.leaves()

    def gradient():
        with case.differentiable_kernels():
            return torch.autograd.grad(case.value(leaves), leaves)

    return InProcess(gradient, flat_leaves)


def prepare_double_backward(case: Case) -> Run:
    """grad (g'v): the gradient with its graph, and a second backward pass, anew for every v."""
    leaves, v = case.leaves(), list(case.tangents.values())

    def product():
        with case.differentiable_kernels():
            gradient = torch.autograd.grad(case.value(leaves), leaves, create_graph=True)
            return torch.autograd.grad(gradient, leaves, v)

    return InProcess(product, flat_leaves)


def prepare_retained(case: Case) -> Run:
    """The graph of the gradient kept, a backward pass through it for every v."""
    leaves, v = case.leaves(), list(case.tangents.values())
    gradient = _graph(case, leaves)
    return InProcess(
        lambda: torch.autograd.grad(gradient, leaves, v, retain_graph=True), flat_leaves
    )


def prepare_retained_block(case: Case) -> Run:
    """The same, with eight vectors in one backward pass."""
    leaves, block = case.leaves(), list(case.leading_block.values())
    gradient = _graph(case, leaves)

    def product():
        return torch.autograd.grad(
            gradient, leaves, block, retain_graph=True, is_grads_batched=True
        )

    return InProcess(product, flat_leading)


def prepare_backpack_ggn(case: Case) -> Run:
    """J' H_L J v by three backward passes through a graph of the outputs that is kept."""
    from backpack.hessianfree.ggnvp import ggn_vector_product_from_plist

    parts, leaves, v = case.problem.parts, case.leaves(), list(case.tangents.values())
    assert parts is not None
    with case.differentiable_kernels():
        outputs = parts.outputs(dict(zip(case.problem.params, leaves, strict=True)))
        loss = parts.loss(outputs, parts.targets)

    def product():
        with case.differentiable_kernels():
            return ggn_vector_product_from_plist(loss, outputs, leaves, v)

    return InProcess(product, flat_leaves)


def _graph(case: Case, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    with case.differentiable_kernels():
        return torch.autograd.grad(case.value(leaves), leaves, create_graph=True)


def _check_fused(case: Case) -> None:
    if case.problem.fused is None:
        raise Unavailable("the problem has no fused kernels")


def _check_backpack(case: Case) -> None:
    needs_parts(case)
    try:
        import backpack.hessianfree.ggnvp  # noqa: F401
    except ImportError as error:
        raise Unavailable(f"not installed: {error}") from error


SUBJECTS = [
    Subject("torch", "gradient", "autograd", prepare_gradient),
    Subject(
        "torch", "gradient", "differentiable-kernels", prepare_differentiable_gradient, _check_fused
    ),
    Subject("torch", "hessian", "double-backward", prepare_double_backward),
    Subject("pyhessian", "hessian", "retained-graph", prepare_retained),
    Subject("torch", "hessian", "batched-retained-graph", prepare_retained_block, vectors=BLOCK),
    Subject("backpack", "ggn", "r-operator", prepare_backpack_ggn, _check_backpack),
]
