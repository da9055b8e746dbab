# SPDX-License-Identifier: Apache-2.0
"""Evaluate a function so that it can be differentiated twice, or say why it cannot."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hesse.ad.decompositions import Composed
from hesse.ad.variables import Leaves
from hesse.ad.weighted import gradients
from hesse.errors import FunctionError, NonFiniteError
from hesse.vectors.space import Space, all_finite


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Within it, torch picks kernels that have second derivatives, and gradients are recorded.

    Fused attention has no second derivative, cuDNN's recurrent cells neither: the reference kernels
    are used instead, whatever the model asks for, and a compiled model runs as it was written. A
    surrounding `no_grad` or `inference_mode` is
    lifted, since a product is made of derivatives.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(Composed())
        if "torch._dynamo" in sys.modules:  # what torch.compile makes has one derivative only
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if torch.backends.cudnn.is_available():
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


def derivative(output: Tensor | Leaves, x: Leaves, weights=None, **options) -> list[Tensor]:
    """The gradient of w'y, zeros for the leaves that the output y does not depend on."""
    return _filled(gradients(output, x, weights, **options), x)


def _filled(parts: Sequence[Tensor | None], x: Leaves) -> list[Tensor]:
    pairs = zip(parts, x, strict=True)
    return [torch.zeros_like(leaf) if part is None else part for part, leaf in pairs]


def check_depends(value: Tensor, call: str) -> None:
    """Raise if f(x) was computed without x."""
    if not value.requires_grad:
        raise _independent(call)


def _independent(call: str) -> FunctionError:
    return FunctionError(
        call,
        expected="f(x) to depend on x through differentiable operations",
        got="a value that does not depend on x",
        remedy="Compute f from its argument: for a model, use torch.func.functional_call("
        "model, params, inputs) or hesse.Risk; look for .detach(), .item(), no_grad, a cast.",
    )


def gradient_of(
    output: Tensor | Leaves, x: Leaves, call: str, weights=None, **options
) -> list[Tensor]:
    """As `derivative`, but raise if `output` depends on none of x.

    Such an output may require a gradient all the same: that of other tensors which f closes over.
    """
    grads = gradients(output, x, weights, **options)
    if all(part is None for part in grads):
        raise _independent(call)
    if any(part is not None and part.layout is not torch.strided for part in grads):
        raise FunctionError(
            call,
            expected="dense gradients",
            got="a sparse one, as that of nn.Embedding(..., sparse=True)",
            remedy="Construct the module with sparse=False, or set its attribute sparse to False.",
        )
    return _filled(grads, x)


class UndifferentiableError(NotImplementedError):
    """The backward pass of a user's `autograd.Function` is a constant to torch, and is none."""


def graph_nodes(value: Tensor) -> Iterator[Any]:
    """The nodes of the graph of `value`."""
    seen, nodes = set(), [value.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        yield node
        seen.add(node)
        nodes.extend(below for below, _ in node.next_functions)


# torch's second derivative of these drops terms, without an error (torch 2.13).
_WRONG_TWICE = {
    "SparseCooTensor": "torch.sparse_coo_tensor",
    "SparseCompressedTensor": "torch.sparse_compressed_tensor",
}


def custom_function(value: Tensor) -> str | None:
    """The name of an operation in the graph of `value` because of which a product must be checked.

    A user's `autograd.Function`: what its backward pass computes outside torch, in a kernel of its
    own, counts as constant when the gradient is differentiated, and the product is then wrong
    without an error. A pass that is marked `once_differentiable` says so itself, but torch raises
    only if what comes into it has a graph; here it raises always. A few operations of torch
    are no better.
    """
    return next(filter(None, map(_checked_name, graph_nodes(value))), None)


def _checked_name(node: Any) -> str | None:
    if not isinstance(node, torch.autograd.function.BackwardCFunction):
        name = node.name()
        return next((call for key, call in _WRONG_TWICE.items() if name.startswith(key)), None)
    function = getattr(node, "_forward_cls", type(node))
    code = getattr(getattr(function, "backward", None), "__code__", None)
    if code is not None and code.co_filename == torch.autograd.function.__file__:
        raise UndifferentiableError(
            f"the backward pass of {function.__name__} is marked once_differentiable"
        )
    return function.__name__


def check_finite(vector: Tensor, space: Space, call: str, what: str) -> Tensor:
    """`vector` itself if every entry is finite; otherwise an error that names the parameter."""
    if all_finite(vector):
        return vector
    raise NonFiniteError(
        call,
        expected=f"a finite {what}",
        got=f"NaN or Inf in the {what} with respect to '{space.first_bad_name(vector)}'",
        remedy="Look for a division by zero, log(0), sqrt(0) or |.| at a kink, or an overflow at "
        "this point; v and x must be finite too.",
    )


def check_finite_value(value: float, call: str) -> float:
    """`value` itself if it is finite."""
    if math.isfinite(value):
        return value
    raise NonFiniteError(
        call,
        expected="a finite value f(x)",
        got=str(value),
        remedy="Check x and the data for NaN, and f for overflow or a domain error at this point.",
    )
