# SPDX-License-Identifier: Apache-2.0
"""Evaluate a user's function so that it can be differentiated twice, or say why it cannot.

The rest of `ad` sees f as a function of a list of leaves; this file is where the user's f is
called.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hesse.ad.composed import Composed
from hesse.ad.generators import generator_states, same_states
from hesse.ad.weighted import gradients
from hesse.errors import FunctionError, NonFiniteError, RandomnessError
from hesse.vectors import Space, Tree, all_finite

Leaves = Sequence[Tensor]
LeafFunction = Callable[[Leaves], Tensor]
T = TypeVar("T")


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


@dataclass(frozen=True)
class Variables:
    """Which leaves of x vary: all but the parameters frozen by `requires_grad=False`.

    A product sees the varying leaves only; a frozen leaf has zero rows and columns.
    """

    space: Space
    constants: tuple[Tensor | None, ...]
    x: tuple[Tensor, ...]
    """The varying leaves, which the leaves of a direction look like."""

    @staticmethod
    def of(x: Tree, space: Space, call: str) -> tuple[Variables, list[Tensor]]:
        """The variables of x, and its varying leaves, detached."""
        leaves = space.leaves(x, call=call, what="x")
        frozen = [
            isinstance(leaf, torch.nn.Parameter) and not leaf.requires_grad for leaf in leaves
        ]
        if all(frozen):
            raise FunctionError(
                call,
                expected="at least one parameter that is not frozen",
                got=f"requires_grad=False on all of {space.describe()}",
                remedy="Unfreeze some with .requires_grad_(True), or give plain tensors, which "
                "always vary.",
            )
        fresh = [detached(leaf) for leaf in leaves]
        constants = tuple(leaf if cold else None for leaf, cold in zip(fresh, frozen, strict=True))
        varying = [leaf for leaf, cold in zip(fresh, frozen, strict=True) if not cold]
        return Variables(space, constants, tuple(varying)), varying

    @property
    def frozen(self) -> list[Tensor]:
        """The leaves that do not vary."""
        return [leaf for leaf in self.constants if leaf is not None]

    @property
    def key(self) -> Hashable:
        """What two points have in common if one program serves both."""
        return self.space.names, tuple(leaf is None for leaf in self.constants)

    def select(self, leaves: Leaves) -> list[Tensor]:
        """The varying leaves among all leaves."""
        return [leaf for leaf, cold in zip(leaves, self.constants, strict=True) if cold is None]

    def expand(self, varying: Leaves) -> list[Tensor]:
        """All leaves of a gradient or product, zero where frozen."""
        rest = iter(varying)
        return [next(rest) if cold is None else torch.zeros_like(cold) for cold in self.constants]

    def bind(self, f: Callable[[Tree], Any], call: str) -> LeafFunction:
        """f as a checked scalar function of the varying leaves."""
        return lambda varying: check_scalar(f(self.tree(varying)), call)

    def tree(self, varying: Leaves) -> Tree:
        """x with these varying leaves."""
        rest = iter(varying)
        return self.space.build([next(rest) if cold is None else cold for cold in self.constants])

    @cached_property
    def sizes(self) -> list[int]:
        """Number of entries of every leaf, frozen ones included."""
        return self.space.sizes

    def flatten(self, varying: Leaves) -> Tensor:
        """The flat vector, shape (n,), of a gradient or product; may share memory with one leaf."""
        with torch.no_grad():
            return self.join(self.expand(varying))

    def join(self, leaves: Leaves) -> Tensor:
        """The entries of leaves side by side; may share memory with a single one."""
        parts = [leaf.reshape(-1).to(self.space.dtype) for leaf in leaves]
        return torch.cat(parts) if len(parts) > 1 else parts[0].detach()

    def store(self, rows: Tensor, joined: Tensor, coefficient: float, *, accumulate: bool) -> None:
        """rows = coefficient * joined, or += : flat vectors (..., n) of joined varying leaves."""
        varying = iter(joined.split([leaf.numel() for leaf in self.x], dim=-1))
        for part, cold in zip(rows.split(self.sizes, dim=-1), self.constants, strict=True):
            if cold is not None:
                if not accumulate:
                    part.zero_()
            elif accumulate:
                part.add_(next(varying), alpha=coefficient)
            else:
                part.copy_(next(varying))
                if coefficient != 1.0:
                    part.mul_(coefficient)

    def split(self, vector: Tensor) -> list[Tensor]:
        """The varying leaves of a flat vector."""
        parts = zip(self.select(vector.split(self.sizes)), self.x, strict=True)
        return [part.view_as(leaf).to(leaf.dtype) for part, leaf in parts]


def detached(leaf: Tensor) -> Tensor:
    """A leaf without history; an inference tensor becomes a normal one by a copy."""
    if not leaf.is_inference():
        return leaf.detach()
    with torch.inference_mode(False):
        return leaf.clone()


def tracked(leaves: Leaves) -> list[Tensor]:
    """Fresh leaves that require a gradient: nothing of the caller's tensors is touched."""
    return [detached(leaf).requires_grad_() for leaf in leaves]


def check_scalar(value: Any, call: str) -> Tensor:
    """`value` itself if it is a real scalar tensor."""
    if isinstance(value, Tensor) and value.ndim == 0 and value.dtype.is_floating_point:
        return value
    got = (
        f"a tensor of shape {tuple(value.shape)} and dtype {value.dtype}"
        if isinstance(value, Tensor)
        else f"a {type(value).__name__}"
    )
    raise FunctionError(
        call,
        expected="f(x) to be a scalar: a floating-point tensor of shape ()",
        got=got,
        remedy="Reduce it, with .sum() or .mean() (a loss: reduction='mean'), and return the "
        "tensor itself rather than .item() or a tuple.",
    )


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


def run_deterministic(run: Callable[[], T], call: str, *, again: bool = False) -> T:
    """run(), after making sure that no random numbers went into its result.

    Whether any were drawn is read off the generators, so that a deterministic f is run once. One
    that draws may still be deterministic (a fixed seed inside): a second run decides. `again`: the
    same was run at another point before, when it drew none from generators outside of torch.
    """
    before = generator_states(quickly=again)
    first = run()
    if same_states(before, generator_states(quickly=again)):
        return first
    second = run()
    check_same(first, second, call)
    return second


def check_same(first: Any, second: Any, call: str) -> None:
    """Raise if two runs at one point, tensors or prepared products, gave different results."""
    for one, two in zip(_fingerprints(first), _fingerprints(second), strict=True):
        # Entries of a gradient that cancel to nothing are rounding of the large ones.
        size = float(two.nan_to_num().abs().max()) if two.numel() else 0.0
        if not torch.allclose(one, two, atol=1e-8 + 1e-5 * size, equal_nan=True):
            raise RandomnessError(
                call,
                expected="a deterministic f: the same result at the same x",
                got=f"results that differ by {float((one - two).abs().max()):.3g} between two runs",
                remedy="Call model.eval(), set dropout to 0, or fix the seed inside f.",
            )


def _fingerprints(result: Any) -> Iterator[Tensor]:
    """What must agree: a tensor itself; the value, gradient and product of a prepared product.

    A value need not feel the noise: with a head of zeros a loss is the same for all features.
    """
    if isinstance(result, Tensor):
        yield result
        return
    yield result.value
    yield _joined(result.gradient)
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(g.shape, generator=generator).to(g) for g in result.gradient]
    with suppress(NotImplementedError):  # what has no second derivative says so itself
        yield _joined(result.product(directions))


def _joined(parts: Leaves) -> Tensor:
    return torch.cat([part.detach().reshape(-1) for part in parts])
