# SPDX-License-Identifier: Apache-2.0
"""The likelihoods inside a loss, seen while it is computed.

A loss may be a closure, reshape what it is given, add several terms up, or be computed by the model
itself. In all of these it calls a loss function of torch in the end. `LikelihoodCalls` notes these
calls, and `seen_loss` turns them into likelihoods: what a call is given as input is z, and its rows
weigh what the call says times the derivative of the loss in the value of the call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hesse.ad.double_backward import derivative, gradients, twice_differentiable
from hesse.ad.graph_nodes import leaves_of
from hesse.ad.likelihoods import categorical, entrywise, without_density
from hesse.ad.likelihoods.likelihood import Likelihood, wide
from hesse.ad.variables import Leaves, number, tracked
from hesse.errors import FunctionError

_LIKELIHOODS: dict[Any, Callable[[Any, Tensor], Likelihood]] = {
    F.cross_entropy: categorical.cross_entropy,
    F.nll_loss: categorical.nll_loss,
    F.mse_loss: entrywise.mse_loss,
    F.binary_cross_entropy_with_logits: entrywise.binary_cross_entropy_with_logits,
    F.binary_cross_entropy: entrywise.binary_cross_entropy,
    F.poisson_nll_loss: entrywise.poisson_nll_loss,
    F.gaussian_nll_loss: entrywise.gaussian_nll_loss,
}
_WITHOUT_DENSITY: dict[Any, Callable[[Any, Tensor], Likelihood]] = {
    F.l1_loss: without_density.l1_loss,
    F.smooth_l1_loss: without_density.of_entries,
    F.huber_loss: without_density.of_entries,
    F.soft_margin_loss: without_density.of_entries,
}
_OF_DIFFERENCES = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)
_ROWS = _LIKELIHOODS | _WITHOUT_DENSITY
_SIGNATURES = {function: inspect.signature(function) for function in _ROWS}
LOSSES = sorted(function.__name__ for function in _LIKELIHOODS)


@dataclass(frozen=True)
class Call:
    """A call of a loss of torch, with its arguments by name."""

    function: Any
    arguments: dict[str, Any]

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The tensors that the distribution is given by."""
        names = ("input", "var") if self.function is F.gaussian_nll_loss else ("input",)
        return tuple(p for p in map(self.arguments.get, names) if isinstance(p, Tensor))

    @property
    def given(self) -> list[Tensor]:
        """The other tensors among the arguments, targets and weights."""
        own = {id(p) for p in self.parameters}
        tensors = [a for a in self.arguments.values() if isinstance(a, Tensor)]
        return [tensor for tensor in tensors if id(tensor) not in own]

    @property
    def name(self) -> str:
        """Of the function."""
        return self.function.__name__

    @property
    def present_versions(self) -> tuple[int, ...]:
        """What changes when somebody writes to the parameters."""
        return tuple(-1 if p.is_inference() else p._version for p in self.parameters)

    def at(self, parameters: Sequence[Tensor]) -> Call:
        """The call with other parameters of the distribution."""
        changed = dict(zip(("input", "var"), parameters, strict=False))
        return Call(self.function, {**self.arguments, **changed})

    def take(self) -> Tensor:
        """The value, recomputed."""
        return self.function(**self.arguments)


@dataclass(frozen=True)
class NotedCall(Call):
    """A call within a loss: its value there, and what had been written to."""

    value: Tensor
    versions: tuple[int, ...] = ()


class LikelihoodCalls(TorchFunctionMode):
    """Within it, calls of the losses of torch that are likelihoods are noted.

    Args:
        any_rows: whether those are as well that have rows and slopes, but no density of targets.

    >>> z = torch.zeros(2, 3, requires_grad=True)
    >>> with LikelihoodCalls() as seen:
    ...     _ = 0.5 * F.cross_entropy(z, torch.tensor([0, 2]), reduction="sum")
    >>> [call.name for call in seen.calls]
    ['cross_entropy']
    """

    def __init__(self, *, any_rows: bool = False) -> None:
        super().__init__()
        self._functions = _ROWS if any_rows else _LIKELIHOODS
        self.calls: list[NotedCall] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`."""
        kwargs = kwargs or {}
        value = func(*args, **kwargs)
        if func not in self._functions:
            return value
        arguments = _arguments(func, args, kwargs)
        # A copy, so that what the user writes into the value (loss *= 2) comes after it.
        call = NotedCall(func, arguments, value.clone())
        self.calls.append(replace(call, versions=call.present_versions))
        return call.value


@dataclass(frozen=True)
class SeenLikelihoods:
    """sum_k c_k' l_k, with likelihoods l_k of the tensors z_k.

    Args:
        likelihoods: those of the calls.
        calls, weights: the calls of a loss that depend on the variables, and c_k.
    """

    likelihoods: list[Likelihood]
    calls: Sequence[Call]
    weights: list[Tensor]

    def at(self, z: Sequence[Tensor]) -> SeenLikelihoods:
        """Those of the same targets at other outputs."""
        rest = iter(z)
        calls = [call.at([next(rest) for _ in call.parameters]) for call in self.calls]
        pairs = zip(self.likelihoods, calls, strict=True)
        likelihoods = [replace(each, parameters=call.parameters) for each, call in pairs]
        return SeenLikelihoods(likelihoods, calls, self.weights)

    @property
    def given(self) -> list[Tensor]:
        """The targets and weights that the calls were given."""
        return [tensor for call in self.calls for tensor in call.given]

    @cached_property
    def slopes(self) -> list[list[Tensor]]:
        """The derivative of each c_k' l_k in its parameters."""
        return [_slope(call, c) for call, c in zip(self.calls, self.weights, strict=True)]

    @property
    def z(self) -> list[Tensor]:
        """The parameters of all likelihoods, with their graph."""
        return [part for likelihood in self.likelihoods for part in likelihood.parameters]

    def pairs(self, parts: Iterable[Tensor]) -> list[tuple[Likelihood, list[Tensor]]]:
        """Each likelihood with those of the parts, in the order of `z`, that are its own."""
        rest = iter(parts)
        return [(each, [next(rest) for _ in each.parameters]) for each in self.likelihoods]

    @property
    def slope(self) -> list[Tensor]:
        """dL/dz, one tensor for each of `z`."""
        return [part for parts in self.slopes for part in parts]

    def of_parameters(self, z: Sequence[Tensor]) -> Tensor:
        """The sum as a function of the parameters of the likelihoods."""
        rest, total = iter(z), []
        for call, c in zip(self.calls, self.weights, strict=True):
            values = call.at([next(rest) for _ in call.parameters]).take()
            total.append((c * values).sum())
        return torch.stack(total).sum()

    def check(self) -> None:
        """Raise unless weights are at least zero and probabilities add up to one."""
        for call, likelihood in zip(self.calls, self.likelihoods, strict=True):
            if bool((likelihood.omega < 0).any()):
                raise _refused(f"{call.name} with negative weights", "Let all weights be >= 0")
            if isinstance(likelihood, categorical.LogProbabilities):
                total = likelihood.p.sum(likelihood.row_dim) - 1.0
                if float(total.abs().max()) > 100 * torch.finfo(likelihood.parameters[0].dtype).eps:
                    raise _refused(
                        f"{call.name} of inputs whose exponentials do not add up to one",
                        "Give it log-probabilities, such as those of log_softmax",
                    )


@dataclass(frozen=True)
class SeenLoss(SeenLikelihoods):
    """A loss L that is such a sum, and a constant; `value` is L."""

    value: Tensor


def seen_loss(
    value: Tensor, calls: Sequence[NotedCall], x: Leaves, loss: str = "the loss"
) -> SeenLoss:
    """The likelihoods of a loss with this value, from the calls that were noted.

    Args:
        value: the loss, with its graph.
        calls: those noted while it was computed.
        x: the leaves that it depends on.
        loss: its name, for messages.

    Raises:
        FunctionError: the loss is no weighted sum of likelihoods, or depends on x by another way.
    """
    calls = [call for call in calls if call.value.requires_grad]
    weights = gradients(value, [c.value for c in calls], create_graph=True) if calls else ()
    pairs = [(call, c) for call, c in zip(calls, weights, strict=True) if c is not None]
    if not pairs:
        raise _refused(f"{loss}, in which none of them is called")
    for call, c in pairs:
        if c.requires_grad:
            raise _refused(f"{loss}, which is not linear in the value of its {call.name}")
        if call.versions != call.present_versions:
            raise _refused(
                f"{loss}, which writes into what its {call.name} was given",
                "Let it change a copy",
            )
        _check_arguments(call)
    nodes = _nodes_above(value, [call.value for call, _ in pairs])
    if {id(leaf) for leaf in x} & leaves_of(nodes).keys():
        names = " and ".join(sorted({call.name for call, _ in pairs}))
        raise _refused(
            f"{loss}, which depends on the parameters by another way than through its {names}",
            "Give an L2 penalty as weight_decay=; leave out other terms",
        )
    calls, weights = [call for call, _ in pairs], [c.detach() for _, c in pairs]
    likelihoods = [
        _ROWS[call.function](call.arguments, wide(c))
        for call, c in zip(calls, weights, strict=True)
    ]
    seen = SeenLoss(likelihoods, calls, weights, number(value))
    _ = seen.slopes  # now, since the user may write to the targets later
    return seen


def _slope(call: Call, c: Tensor) -> list[Tensor]:
    """The derivative of c'l in the parameters, which may depend on one another in the model."""
    with twice_differentiable():
        z = tracked(call.parameters)
        return derivative(call.at(z).take(), z, c)


def _nodes_above(value: Tensor, inner: Sequence[Tensor]) -> list[Any]:
    """The nodes of the graph of `value`, without what lies below the tensors `inner`."""
    stop = {tensor.grad_fn for tensor in inner}
    seen, nodes, found = set(stop), [value.grad_fn], []
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.append(node)
        nodes.extend(below for below, _ in node.next_functions)
    return found


def counts_of(function: Any, arguments: dict[str, Any], rows: Tensor) -> Tensor:
    """What each row of an unreduced loss adds to the number by which its mean divides."""
    if function not in _ROWS:
        return torch.ones_like(rows)
    one = rows.new_ones(())
    return _ROWS[function]({**arguments, "reduction": "sum"}, one).counts


def _arguments(function: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments by name; a number as variance becomes a tensor."""
    bound = _SIGNATURES[function].bind(*args, **kwargs)
    bound.apply_defaults()
    a = dict(bound.arguments)
    if function is F.gaussian_nll_loss and not isinstance(a["var"], Tensor):
        a["var"] = torch.full_like(a["input"], float(a["var"]))
    if function in _OF_DIFFERENCES and a["target"].requires_grad and not a["input"].requires_grad:
        a["input"], a["target"] = a["target"], a["input"]
    return a


def _check_arguments(call: Call) -> None:
    """Raise unless the parameters of the distribution are all that varies."""
    arguments = call.arguments
    legacy = arguments.get("size_average") is not None or arguments.get("reduce") is not None
    if legacy:
        raise _refused(f"{call.name} with size_average= or reduce=", "Give reduction=")
    is_entrywise = call.function not in (F.cross_entropy, F.nll_loss)
    shapes = [tuple(arguments[name].shape) for name in ("input", "target")]
    if is_entrywise and shapes[0] != shapes[1]:
        raise _refused(
            f"{call.name} of inputs {shapes[0]} and targets {shapes[1]}", "Give them one shape"
        )
    for name in ("target", "weight", "pos_weight"):
        argument = arguments.get(name)
        if isinstance(argument, Tensor) and argument.requires_grad:
            raise _refused(
                f"{call.name} whose argument {name} depends on the parameters",
                f"Call .detach() on {name}",
            )


def _refused(got: str, remedy: str = "") -> FunctionError:
    return FunctionError(
        expected=f"a loss that is a likelihood: a weighted sum of {', '.join(LOSSES)} of torch",
        got=got,
        remedy=f"{remedy or 'Compute the loss by one of these'}; or give likelihood=, one of "
        "these losses with the same derivative. hesse.ggn_operator needs no likelihood.",
    )
