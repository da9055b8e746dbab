# SPDX-License-Identifier: Apache-2.0
"""Functions that are sums, taken one summand at a time.

A function with a method `summands()` stands for f = sum_i c_i f_i, and its value, gradient and
products are the sums of those of its summands: memory for one of them, not for all. A `Risk` is
such a function, with one summand for each batch and a quadratic one for its weight decay.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor, nn

from hesse.ad.quadratic import Quadratic
from hesse.errors import FunctionError, kind_of


@dataclass(frozen=True)
class Summand:
    """c_i f_i, with the data that tell f_i from its neighbours.

    `function` maps the variables to a scalar, or has the methods that another definition needs:
    `outputs` and `loss` for a Gauss-Newton matrix.

    Summands of one `key` are one function of their variables and their `data`: the programs of one
    serve the others. A key of None makes no such promise.
    """

    coefficient: float
    function: Any
    data: tuple[Tensor, ...] = ()
    key: Hashable = None
    x: Any = None
    """The variables of this summand, where every summand has its own."""


class Sum(Protocol):
    """f = sum_i c_i f_i."""

    @property
    def num_summands(self) -> int:
        """How many there are, those without data (weight decay) apart."""
        ...

    @property
    def holds_data(self) -> bool:
        """Whether the data are tensors that stay, so that a write to them shows."""
        ...

    def summands(self) -> Iterator[Summand]:
        """The summands, made again by every sweep.

        Where `sweep_is_free` is set, which is optional, they are held while the data stay.
        """
        ...


@dataclass(frozen=True)
class OneFunction:
    """A plain function, which is its only summand."""

    function: Any

    num_summands = 1
    holds_data = True
    sweep_is_free = True

    def summands(self) -> Iterator[Summand]:
        """The function."""
        yield Summand(1.0, self.function, key="f")


def as_sum(f: Any) -> Sum:
    """f itself if it has summands; a plain function as a sum of one."""
    return f if hasattr(f, "summands") else OneFunction(f)


def unweighted(summands: Iterable[Summand]) -> Iterator[Summand]:
    """The summands that have data, with the factor 1: weight decay has no outputs."""
    for summand in summands:
        if not isinstance(summand.function, Quadratic):
            yield replace(summand, coefficient=1.0)


def check_at(f: Any, x: Any) -> None:
    """Let f, if it is more than a function, say at its first point what is wrong with it."""
    if hasattr(f, "check_at"):
        f.check_at(x)
    elif isinstance(f, nn.Module) and isinstance(x, Mapping):
        if x.keys() & dict(f.named_parameters()).keys():
            raise FunctionError(
                expected="f to be a scalar function of x",
                got=f"the module {type(f).__name__}, with its parameters as x",
                remedy="Give hesse.Risk(model, loss, data), or a function of the parameters that "
                "calls torch.func.functional_call(model, params, inputs).",
            )
    elif isinstance(f, type) or not (callable(f) or hasattr(f, "summands")):
        raise FunctionError(
            expected="f to be a scalar function of x",
            got=f"the class {f.__name__}" if isinstance(f, type) else kind_of(f),
            remedy="Give a function, or an instance of the class; the order of arguments is (f, "
            "x).",
        )


def weighted_sum(parts: Iterable[tuple[float, tuple[Tensor | None, ...]]]) -> list[Tensor | None]:
    """sum_i c_i t_i, entry by entry of the tuples t_i; None stays None.

    >>> import torch
    >>> weighted_sum([(0.5, (torch.ones(2), None)), (2.0, (torch.ones(2), None))])
    [tensor([2.5000, 2.5000]), None]
    """
    total: list[Tensor | None] = []
    for number, (coefficient, part) in enumerate(parts):
        scaled = [_times(coefficient, entry) for entry in part]
        if number == 0:
            total = scaled
        elif number == 1:  # the first may belong to somebody
            pairs = zip(total, scaled, strict=True)
            total = [None if s is None or e is None else s + e for s, e in pairs]
        else:
            for sum_, entry in zip(total, scaled, strict=True):
                if sum_ is not None and entry is not None:
                    sum_.add_(entry)
    return total


def _times(coefficient: float, entry: Tensor | None) -> Tensor | None:
    return entry if entry is None or coefficient == 1.0 else coefficient * entry
