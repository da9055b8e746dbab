"""`torch.func` in eager mode: compositions of `grad`, `jvp`, `vjp` and `vmap`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vjp, vmap

from benchmarks.case import BLOCK, Case
from benchmarks.problem import Params
from benchmarks.subjects.subject import (
    InProcess,
    Run,
    Subject,
    flat_leading,
    flat_leaves,
    needs_parts,
)

Product = Callable[[Params, Params], Params]
"""(params, v) -> the product."""


def forward_over_reverse(case: Case) -> Product:
    """d/dt grad f(x + t v)."""
    f = case.problem.transformable
    return lambda params, v: jvp(grad(f), (params,), (v,))[1]


def reverse_over_forward(case: Case) -> Product:
    """grad of the slope f'(x; v)."""
    f = case.problem.transformable
    return lambda params, v: grad(lambda at: jvp(f, (at,), (v,))[1])(params)


def gauss_newton(case: Case) -> Product:
    """J' H_L J v: forward mode through the model, the loss Hessian, reverse mode."""
    parts = case.problem.transformable_parts
    assert parts is not None

    def outputs(params: Params) -> Tensor:
        return functional_call(parts.model, params, (parts.inputs,))

    def product(params: Params, v: Params) -> Params:
        z, pull_back = vjp(outputs, params)
        _, pushed = jvp(outputs, (params,), (v,))
        slope = grad(lambda z: parts.loss(z, parts.targets))
        return pull_back(jvp(slope, (z,), (pushed,))[1])[0]

    return product


def _prepare(product_of: Callable[[Case], Product]) -> Callable[[Case], Run]:
    def prepare(case: Case) -> Run:
        product, params, v = product_of(case), case.problem.params, case.tangents

        def call() -> Params:
            with case.differentiable_kernels():
                return product(params, v)

        return InProcess(call, lambda result: flat_leaves(result.values()))

    return prepare


def _prepare_block(product_of: Callable[[Case], Product]) -> Callable[[Case], Run]:
    def prepare(case: Case) -> Run:
        product, params, block = product_of(case), case.problem.params, case.leading_block
        batched = vmap(product, in_dims=(None, 0), randomness="same")

        def call() -> Params:
            with torch.no_grad(), case.differentiable_kernels():
                return batched(params, block)

        return InProcess(call, lambda result: flat_leading(result.values()))

    return prepare


SUBJECTS = [
    Subject("torch.func", "hessian", "forward-over-reverse", _prepare(forward_over_reverse)),
    Subject("torch.func", "hessian", "reverse-over-forward", _prepare(reverse_over_forward)),
    Subject("torch.func", "ggn", "jvp-vjp", _prepare(gauss_newton), needs_parts),
    Subject(
        "torch.func",
        "hessian",
        "forward-over-reverse",
        _prepare_block(forward_over_reverse),
        vectors=BLOCK,
    ),
]
