# SPDX-License-Identifier: Apache-2.0
"""A training loop's closure as a `Risk`: its loss at other values of the parameters that it uses.

A closure reads its parameters wherever it finds them. It is run while functions of torch see the
given values in their place, as in `substitution`. A Gauss-Newton matrix also needs the loss as a
function of the outputs alone: the closure is then run once more, and the calls of torch that made
the outputs return the given ones instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hesse.ad.loss import map_outputs
from hesse.errors import ArgumentError, DataError, FunctionError, kind_of
from hesse.risk.risk import Risk

Closure = Callable[[], Any]
"""() -> (outputs, loss), or the loss."""
Place = tuple[int, int]
"""A call of torch by its number, and which of its results."""


class _Calls(TorchFunctionMode):
    """Within it, torch sees given tensors for parameters, and results of calls may be replaced.

    Args:
        parameters: id of a parameter -> what is given for it. Other parameters are constants.
        results: what calls return instead of their own results.
        wanted: called with the number of a call and its results.
    """

    def __init__(
        self,
        parameters: Mapping[int, Tensor],
        results: Mapping[Place, Tensor],
        noted: dict[int, Place] | None = None,
    ) -> None:
        super().__init__()
        self._parameters, self._results, self._noted = parameters, results, noted
        self._kept: list[Tensor] = []
        self._count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") == "backward":  # derivatives are taken by the optimiser
            return None
        args = [self._given(arg) for arg in args]
        kwargs = {key: self._given(arg) for key, arg in (kwargs or {}).items()}
        result = func(*args, **kwargs)
        self._count += 1
        if isinstance(result, Tensor):
            return self._visit(result, 0)
        if type(result) in (list, tuple) and any(isinstance(part, Tensor) for part in result):
            parts = enumerate(result)
            return type(result)(self._visit(t, i) if isinstance(t, Tensor) else t for i, t in parts)
        return result

    def _visit(self, result: Tensor, index: int) -> Tensor:
        place = self._count, index
        if self._noted is not None:
            self._noted[id(result)] = place
            self._kept.append(result)  # so that no other tensor gets its id
        given = self._results.get(place, result)
        if given.shape != result.shape:
            raise _changes()
        return given

    def _given(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            given = self._parameters.get(id(value))
            if given is None and isinstance(value, nn.Parameter) and value.requires_grad:
                return value.detach()
            return value if given is None else given
        if type(value) in (list, tuple):
            return type(value)(self._given(part) for part in value)
        return value


class ClosureModel:
    """What a closure computes, as a model of the parameters and a loss of its outputs.

    Args:
        parameters: the tensors that the closure uses, by name.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._own = dict(parameters)
        self.closure: Closure | None = None
        self.examples = 0
        self._given: dict[int, Tensor] = {}
        self._places: list[Place] = []
        self._last: tuple[Any, Tensor] | None = None

    def evaluate(self) -> tuple[Any, Tensor]:
        """The outputs and the loss at the parameters as they are; the outputs may be the loss."""
        with torch.no_grad(), _Calls({}, {}):
            return _outputs_and_loss(self._call())

    def outputs(self, params: Mapping[str, Tensor], inputs: Any) -> Any:
        """The outputs at other parameters.

        Raises:
            DataError: `inputs`, which stand for the batch, are a part of it.
        """
        if len(inputs) != self.examples:
            raise DataError(
                expected="examples that can be evaluated apart",
                got="a closure, which evaluates its whole batch",
                remedy="Build a hesse.Risk(model, loss, data) for HessianFree(risk); or take a "
                "curvature and a preconditioner by name.",
            )
        self._given = {id(self._own[name]): tensor for name, tensor in params.items()}
        noted: dict[int, Place] = {}
        with _Calls(self._given, {}, noted) as calls:
            outputs, loss = _outputs_and_loss(self._call())
        self._places = _places(outputs, noted)
        del calls
        self._last = outputs, loss
        return outputs

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The loss as a function of the outputs."""
        last, self._last = self._last, None
        if isinstance(outputs, Tensor) and not self._places:
            return outputs  # the closure returns the loss alone
        if last is not None and last[0] is outputs:
            return last[1]
        given = _tensors(outputs)
        if len(given) != len(self._places):
            raise _changes()
        results = dict(zip(self._places, given, strict=True))
        with _Calls(self._given, results):
            return _outputs_and_loss(self._call())[1]

    def _call(self) -> Any:
        assert self.closure is not None
        return self.closure()


class ClosureRisk:
    """The risk of whatever closure a step is given.

    Args:
        parameters: the tensors that the closures use, by name.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._parameters = dict(parameters)
        self._model = ClosureModel(parameters)
        self._risk: Risk | None = None

    def of(self, closure: Closure) -> tuple[Risk, float]:
        """The risk of a closure, which takes the place of the one before, and its present value."""
        self._model.closure = closure
        outputs, loss = self._model.evaluate()
        examples = _num_examples(outputs)
        if self._risk is None or examples != self._model.examples:
            self._model.examples = examples
            like = next(iter(self._parameters.values()))
            rows = torch.zeros(examples, 1, dtype=like.dtype, device=like.device)
            params = {name: p.detach().clone() for name, p in self._parameters.items()}
            self._risk = Risk(self._model.outputs, self._model.loss, (rows, rows), params=params)
        return self._risk, float(loss)


def _outputs_and_loss(result: Any) -> tuple[Any, Tensor]:
    if isinstance(result, Tensor):
        outputs, loss = result, result
    elif isinstance(result, tuple) and len(result) == 2:
        outputs, loss = result
    else:
        outputs = loss = None
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return outputs, loss
    raise ArgumentError(
        expected="a closure that returns (outputs, loss), or the loss, a scalar tensor",
        got=f"one that returns {kind_of(result)}",
        remedy="def closure(): outputs = model(x); return outputs, loss_function(outputs, y)",
    )


def _tensors(outputs: Any) -> list[Tensor]:
    """The tensors of the outputs, each once."""
    found: dict[int, Tensor] = {}
    map_outputs(lambda tensor: found.setdefault(id(tensor), tensor), outputs)
    return list(found.values())


def _places(outputs: Any, noted: Mapping[int, Place]) -> list[Place]:
    """The calls that made the outputs; none if these are the loss."""
    tensors = _tensors(outputs)
    if isinstance(outputs, Tensor) and outputs.numel() == 1 and outputs.ndim == 0:
        return []
    if any(id(tensor) not in noted for tensor in tensors):
        raise FunctionError(
            expected="outputs that are results of functions of torch",
            got="one that is not, as that of a torch.autograd.Function",
            remedy="Return a view of it, outputs.view_as(outputs), or the loss alone; or build a "
            "hesse.Risk(model, loss, data).",
        )
    return [noted[id(tensor)] for tensor in tensors]


def _num_examples(outputs: Any) -> int:
    """The size of the first dimension of all outputs; 1 where they differ or have none."""
    sizes = {tensor.shape[0] for tensor in _tensors(outputs) if tensor.ndim > 0}
    return sizes.pop() if len(sizes) == 1 else 1


def _changes() -> FunctionError:
    return FunctionError(
        expected="a closure that calls the same functions of torch at every evaluation",
        got="one that calls others",
        remedy="Seed or switch off what is random, model.eval(); draw the batch outside of the "
        "closure; or build a hesse.Risk(model, loss, data).",
    )


def names_of(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each parameter of an optimiser: those that were given, else their numbers."""
    given = [name for group in groups for name in group.get("param_names", [])]
    count = sum(len(group["params"]) for group in groups)
    return given if len(given) == count else [str(k) for k in range(count)]
