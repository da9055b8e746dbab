# SPDX-License-Identifier: Apache-2.0
"""Reverse mode, twice: gradients that can be differentiated again, by kernels that allow it.

A gradient of w'y for given weights w is that of a scalar whose derivative in y is w. Given
`grad_outputs`, `torch.autograd.grad` compares symbolic shapes, for which it imports sympy: a third
of a second in a fresh process (torch 2.13). From the scalar there is nothing to compare.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from hesse.ad.graph_nodes import check_seen_whole
from hesse.ad.torch_calls import TorchCalls
from hesse.ad.variables import Leaves
from hesse.errors import FunctionError
from hesse.surroundings import WhileAnyone, math_attention, without_saved_tensor_hooks

T = TypeVar("T")

_NO_HOOKS = "hesse allows no saved tensor hooks"


_without_cudnn = WhileAnyone(partial(torch.backends.cudnn.flags, enabled=False))


@contextmanager
def differentiating() -> Iterator[None]:
    """Within it, gradients are recorded, by kernels that have second derivatives.

    Fused attention has no second derivative, cuDNN's recurrent cells neither: the reference kernels
    are used instead, whatever the model asks for, and a compiled model runs as it was written. A
    surrounding `no_grad` or `inference_mode` is lifted, since a product is made of derivatives, and
    hooks on what graphs save are set aside.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        without_saved_tensor_hooks(),
        math_attention(),
    ):
        is_compiled = "torch._dynamo" in sys.modules  # has one derivative only
        if not (is_compiled or torch.backends.cudnn.is_available()):
            yield
            return
        with ExitStack() as stack:
            if is_compiled:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            if torch.backends.cudnn.is_available():
                stack.enter_context(_without_cudnn())
            yield


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """As `differentiating`, to call a function of the user's: see `TorchCalls`.

    Each look at a property of a tensor takes some microseconds in it.
    """
    with differentiating(), TorchCalls():
        yield


def noting_recomputation(value: Callable[[], T]) -> tuple[T, bool]:
    """value(), and whether it set hooks on the tensors that it saved for its backward pass."""
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks(_NO_HOOKS):
            return value(), False
    except RuntimeError as error:
        if _NO_HOOKS not in str(error):
            raise
    return value(), True


def derivative(output: Tensor | Leaves, x: Leaves, weights=None, **options) -> list[Tensor]:
    """The gradient of w'y, zeros for the leaves that the output y does not depend on."""
    return _filled(gradients(output, x, weights, **options), x)


def _filled(parts: Sequence[Tensor | None], x: Leaves) -> list[Tensor]:
    pairs = zip(parts, x, strict=True)
    return [torch.zeros_like(leaf) if part is None else part for part, leaf in pairs]


def check_depends(value: Tensor) -> None:
    """Raise if f(x) was computed without x."""
    if not value.requires_grad:
        raise independent()


def independent() -> FunctionError:
    """The error for a function that was computed without x."""
    return FunctionError(
        expected="f(x) to depend on x through differentiable operations",
        got="a value that does not depend on x",
        remedy="Compute f from its argument: for a model, use torch.func.functional_call("
        "model, params, inputs) or hesse.Risk; look for .detach(), .item(), no_grad, a cast.",
    )


def gradient_of(output: Tensor | Leaves, x: Leaves, weights=None, **options) -> list[Tensor]:
    """As `derivative`, but raise if `output` depends on none of x.

    Such an output may require a gradient all the same: that of other tensors which f closes over.
    """
    grads = gradients(output, x, weights, **options)
    if any(part is None for part in grads):
        check_seen_whole(*([output] if isinstance(output, Tensor) else output))
    if all(part is None for part in grads):
        raise independent()
    return _filled(grads, x)


class _Weighted(torch.autograd.Function):
    """A scalar that stands for w'y, whose value nobody asks for."""

    @staticmethod
    def forward(ctx: Any, weights: Sequence[Tensor], *tensors: Tensor) -> Tensor:
        ctx.weights = weights
        return tensors[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        return None, *ctx.weights


def _in_memory(part: Tensor) -> Tensor:
    """The tensor; with entries if it is a zero without memory, which some kernels cannot take."""
    return torch.zeros_like(part) if part._is_zerotensor() else part


def gradients(
    output: Tensor | Sequence[Tensor],
    x: Sequence[Tensor],
    weights: Sequence[Tensor] | Tensor | None = None,
    *,
    retain_graph: bool | None = None,
    create_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    """`torch.autograd.grad`; None for those of x that the output does not depend on.

    torch gives a zero without memory as the derivative of `sgn`, say; here every part has some.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> gradients([x * x, x], [x], [torch.ones(2), torch.tensor([0.0, 5.0])])
    (tensor([2., 9.]),)
    """
    if weights is not None:
        listed = [[part] if isinstance(part, Tensor) else part for part in (weights, output)]
        output = _Weighted.apply([_in_memory(part) for part in listed[0]], *listed[1])
    grads = torch.autograd.grad(output, x, None, retain_graph, create_graph, allow_unused=True)
    if any(part is not None and part.layout is not torch.strided for part in grads):
        raise FunctionError(
            expected="dense gradients",
            got="a sparse one, as that of nn.Embedding(..., sparse=True)",
            remedy="Construct the module with sparse=False, or set its attribute sparse to False.",
        )
    return tuple(None if part is None else _in_memory(part) for part in grads)
