# SPDX-License-Identifier: Apache-2.0
r"""`Risk`: a model, a loss and data as one scalar function that knows its structure.

$$ R(\theta) = \frac{\sum_b w_b\, \ell\big(m(\theta, X_b), y_b\big)}{\sum_b w_b}
             + \frac{\lambda}{2} \lVert\theta\rVert^2 $$

It equals the loss over the whole data set however the data are batched: by default a batch weighs
as many as it has examples. Because it is a sum over batches, its value, gradient and curvature
products are taken one batch at a time; because it knows where the outputs of the model end and the
loss begins, it has a Gauss-Newton matrix.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hesse.ad.checkpointing import noting_recomputation
from hesse.ad.determinism import run_deterministic
from hesse.ad.evaluate import twice_differentiable
from hesse.ad.summands import Term
from hesse.ad.variables import check_scalar
from hesse.data.batches import (
    Batch,
    Batches,
    SmallBatches,
    Weight,
    fingerprint,
    first_pieces,
    tensors,
)
from hesse.data.reduction import check_average, tolerance
from hesse.engine.recently_used import RecentlyUsed
from hesse.errors import ArgumentError, RandomnessError, ShapeError, StructureError
from hesse.risk.buffers import copies, restoring_buffers
from hesse.vectors.space import Tree

_CALL = "hesse.Risk(model, loss, data)"
# Shapes of data whose programs are held on to, unless a single sweep meets more.
_SHAPES = 16


class Risk:
    r"""The mean loss of a model over data, plus weight decay, as a function of the parameters.

    Args:
        model: an `nn.Module`, or a callable (params, inputs) -> outputs.
        loss: (outputs, targets) -> a scalar, e.g. `nn.CrossEntropyLoss()`.
        data: a pair (inputs, targets), an iterable of such batches (of any sizes), or a DataLoader.
            Tuples as inputs are positional, mappings keyword arguments of the model; a batch that
            is a mapping is the model's keyword arguments and the loss's second argument. Tensors
            are moved to the device of the parameters.
        weight_decay: lambda in (lambda / 2) |theta|^2 over all parameters given, so that lambda
            theta is added to the gradient, as in `torch.optim`.
        weight: (inputs, targets) -> weight of a batch where its number of examples is not what its
            loss averages over, such as a count of tokens; needed for batches that cannot be cut
            along their first dimension, such as graphs.
        reduction: whether the loss averages ("mean") or adds up ("sum") over a batch; default:
            what `loss.reduction` says, else "mean". A sum is added up over the batches.
        params: the tree for `risk.params` when the model is a plain callable.

    Calling it, `risk(params)`, gives the scalar, differentiable in params. `params` is any tree
    that the model takes; for a module, a mapping from names to tensors, of all its parameters or
    some (the others stay as they are in the module). Tied weights appear once; buffers are
    constants: one that a forward pass writes to is computed with as a copy.

    Raises:
        HesseError: no data or data of unknown form, or others in the next sweep; a loss that is not
            a scalar; a model that is in train mode with dropout or BatchNorm, draws random numbers
            or has a memory; a loss whose batches do not average to the whole (tried on a part of
            the first of several batches, and on what a memory budget cuts). For a plain callable
            without `params`, and for all that is frozen, where it is first evaluated.

    >>> model = nn.Linear(1, 1, bias=False).double()
    >>> x = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    >>> risk = Risk(model, nn.MSELoss(), [(x[:2], 0 * x[:2]), (x[2:], 0 * x[2:])])   # 2 + 1
    >>> risk({"weight": torch.tensor([[3.0]], dtype=torch.float64)})   # 9 * (1 + 4 + 9) / 3
    tensor(42., dtype=torch.float64)
    """

    def __init__(
        self,
        model: nn.Module | Callable[[Any, Any], Any],
        loss: Callable[[Any, Any], Tensor],
        data: Any,
        weight_decay: float = 0.0,
        *,
        weight: Weight | None = None,
        reduction: Literal["mean", "sum"] | None = None,
        params: Tree | None = None,
    ) -> None:
        self._reduction = reduction or getattr(loss, "reduction", "mean")
        _check_arguments(model, self._reduction, weight_decay)
        self.model, self.loss, self.weight_decay = model, loss, float(weight_decay)
        self._check_eval_mode()
        self.data = Batches(data, weight, call=_CALL)
        self._params = params
        self._recomputes, self._changing = False, []
        # Programs of products, for every shape of batch; `on` shares them.
        self.preparations = RecentlyUsed(max(_SHAPES, self.n_terms))
        if isinstance(model, nn.Module):
            self._known = {
                name: (parameter.shape, id(parameter))
                for name, parameter in model.named_parameters(remove_duplicate=False)
            }
        if params is None and isinstance(model, nn.Module):
            self._params = {
                name: parameter.detach().clone()
                for name, parameter in model.named_parameters()
                if parameter.requires_grad
            }
        self._unchecked: list[Batch] = []
        self._checked_in: list[bool] = self._training()
        self._check_soon([self.data.first])

    @property
    def params(self) -> Tree:
        """The trainable parameters at construction: a copy, which later training leaves alone."""
        if self._params is None:
            raise ArgumentError(
                "hesse.Risk.params",
                expected="params= at construction, since the model is a plain callable",
                got="none",
                remedy="Risk(..., params=params), or pass your own tree of parameters.",
            )
        return self._params

    @property
    def n_terms(self) -> int:
        """The number of batches."""
        return self.data.count

    def on(self, data: Any, *, weight: Weight | None = None) -> Risk:
        """The same model, loss and weight decay on other data; what was prepared is shared.

        Several batches are checked to average as those of the constructor are.
        """
        other = self.unchecked_on(data, weight)
        if other.n_terms > 1:
            other._check_soon([other.data.first])
        return other

    def unchecked_on(self, data: Any, weight: Weight | None = None) -> Risk:
        """As `on`, but nobody makes sure that the losses of its batches average."""
        other = copy.copy(self)
        other.data = Batches(data, weight or self.data.weight, call="hesse.Risk.on(data)")
        other._unchecked = []
        self.preparations.limit = max(self.preparations.limit, other.n_terms)
        return other

    def in_small_batches(self, most: int) -> Risk:
        """The same risk, its data in batches of at most `most` examples; shares its programs."""
        small = self.unchecked_on(SmallBatches(self.data, most))
        # Two examples at least, of which each is a part; several such, which are not all alike.
        small._check_soon(first_pieces(self.data.first, max(2, most), self.data.weigh))
        return small

    def __call__(self, params: Tree) -> Tensor:
        """R(params), shape (). Its graph spans all batches; products go batch by batch instead."""
        self.check_at(params)
        parts = [term.coefficient * term.function(params) for term in self.terms()]
        return torch.stack(parts).sum()

    def terms(self) -> Iterator[Term]:
        """c_b f_b for every batch: R = sum_b c_b f_b. Weight decay is shared out among them."""
        for coefficient, batch in self.batches():
            share = batch.weight / self.data.total_weight
            decay = self.weight_decay * share / coefficient
            data, key = fingerprint(batch)
            function = partial(self._term, batch, decay)
            yield Term(coefficient, function, data, None if key is None else (key, decay))

    def batches(self) -> Iterator[tuple[float, Batch]]:
        """(c_b, batch): R = sum_b c_b loss_b, without the weight decay."""
        self._check_eval_mode()
        for batch in self.data:
            mean = self._reduction == "mean"
            yield (batch.weight / self.data.total_weight if mean else 1.0), batch

    def _term(self, batch: Batch, decay: float, params: Tree) -> Tensor:
        batch = batch.to(_device(params))
        value = self.batch_loss(self.outputs(params, batch), batch)
        if decay == 0.0:
            return value
        return value + 0.5 * decay * _squared_norm(params)

    def outputs(self, params: Tree, batch: Batch) -> Any:
        """What the model gives for the inputs of a batch."""
        if not isinstance(self.model, nn.Module):
            return self.model(params, batch.inputs)
        self._check_names(params)
        args, kwargs = _arguments(batch.inputs)
        given = {**params, **copies(self.model, self._changing)}
        if self._recomputes:
            return _with_parameters(self.model, given)(*args, **kwargs)
        return torch.func.functional_call(self.model, given, args, kwargs)

    def batch_loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The scalar loss of a batch, given the outputs of the model."""
        return check_scalar(self.loss(outputs, batch.targets), "hesse.Risk: loss(outputs, targets)")

    # ---------------------------------------------------------------------------------------------
    # Checks

    def _check_names(self, params: Tree) -> None:
        if not isinstance(params, Mapping):
            raise StructureError(
                "hesse.Risk(params)",
                expected="a mapping from names to tensors, as from model.named_parameters()",
                got=f"a {type(params).__name__}",
                remedy="Use risk.params or dict(model.named_parameters()); for another form of "
                "parameters give the model as a callable (params, inputs) -> outputs.",
            )
        unknown = params.keys() - self._known.keys()
        if unknown:
            raise StructureError(
                "hesse.Risk(params)",
                expected=f"names of parameters of the model, such as {sorted(self._known)[:3]}",
                got=f"unknown names {sorted(unknown)[:3]}",
                remedy="Use risk.params or dict(model.named_parameters()).",
            )
        names: dict[int, str] = {}
        for name, leaf in params.items():
            shape, parameter = self._known[name]
            if names.setdefault(parameter, name) != name:
                raise _tied(names[parameter], name)
            if leaf.shape != shape:
                raise _misshapen(name, shape, leaf)

    def _check_eval_mode(self) -> None:
        if not isinstance(self.model, nn.Module):
            return
        for name, module in self.model.named_modules():
            if module.training and _is_random_or_coupled(module):
                raise RandomnessError(
                    _CALL,
                    expected="a model whose loss is a deterministic mean over examples",
                    got=f"'{name or 'the model'}' ({type(module).__name__}) in train mode",
                    remedy="Call model.eval() first; curvature is then that of the deterministic "
                    "model (BatchNorm with its running statistics, dropout off).",
                )

    def check_at(self, params: Tree) -> None:
        """Make sure that model and loss are what the class says, and again after `train()`."""
        if not self._unchecked and self._checked_in != self._training():
            self._unchecked = [self.data.first]
        if not self._unchecked:
            return
        loss, mean = partial(self._value, params), self._reduction == "mean"
        with twice_differentiable():  # a model may differentiate itself in its inputs
            for batch in self._unchecked:
                whole = self._check_model(params, batch)
                if self.n_terms > 1:
                    check_average(loss, whole, batch, self.data, mean=mean)
        self._unchecked, self._checked_in = [], self._training()

    def _training(self) -> list[bool]:
        """Which parts of the model are in train mode."""
        modules = self.model.modules() if isinstance(self.model, nn.Module) else ()
        return [module.training for module in modules]

    def _check_soon(self, batches: list[Batch]) -> None:
        """At the parameters if they are known, else where the risk is first evaluated."""
        self._unchecked = batches
        if next(tensors(self._params), None) is not None:  # not all frozen
            self.check_at(self._params)

    def _check_model(self, params: Tree, batch: Batch) -> Tensor:
        """The loss of a batch, of a model without randomness and without memory."""
        self._recomputes, self._changing = False, []

        def run() -> Tensor:
            return run_deterministic(lambda: self._value(params, batch), _CALL)

        if isinstance(self.model, nn.Module):
            with restoring_buffers(self.model) as self._changing:
                whole, self._recomputes = noting_recomputation(run)
        else:
            whole = run()
        whole = run() if self._changing else whole
        again = self._value(params, batch)
        if abs(whole - again) > tolerance(whole) * max(abs(whole), abs(again)):
            raise RandomnessError(
                _CALL,
                expected="a model that gives the same loss for the same batch",
                got=f"{float(whole):.6g}, then {float(again):.6g}",
                remedy="Call model.eval(); seed or switch off noise; let forward change nothing "
                "that the next call depends on.",
            )
        return whole

    def _value(self, params: Tree, batch: Batch) -> Tensor:
        batch = batch.to(_device(params))
        return self.batch_loss(self.outputs(params, batch), batch).detach()


def _tied(one: str, other: str) -> StructureError:
    return StructureError(
        "hesse.Risk(params)",
        expected="tied parameters under one of their names",
        got=f"both {one!r} and {other!r}, which are one parameter of the model",
        remedy="Use risk.params or dict(model.named_parameters()), which have each once.",
    )


def _misshapen(name: str, shape: torch.Size, leaf: Tensor) -> ShapeError:
    return ShapeError(
        "hesse.Risk(params)",
        expected=f"params[{name!r}] of shape {tuple(shape)}, as in the model",
        got=f"shape {tuple(leaf.shape)}",
        remedy="Use risk.params or dict(model.named_parameters()).",
    )


def _is_random_or_coupled(module: nn.Module) -> bool:
    """Whether a module in train mode draws random numbers or mixes the examples of a batch."""
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)):
        return True
    rate = getattr(module, "p", None) if "Dropout" in type(module).__name__ else None
    if rate is None and isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        rate = module.dropout
    return isinstance(rate, (int, float)) and rate > 0.0


def _check_arguments(model: Any, reduction: str, weight_decay: Any) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise ArgumentError(
            _CALL,
            expected="a module in Python, or a callable (params, inputs) -> outputs",
            got="a module of torch.jit, whose parameters cannot be replaced",
            remedy="Give the module that was scripted or traced.",
        )
    if reduction not in ("mean", "sum"):
        raise ArgumentError(
            _CALL,
            expected="a loss that reduces a batch to a scalar: reduction 'mean' or 'sum'",
            got=f"reduction={reduction!r}",
            remedy="Construct the loss with reduction='mean'.",
        )
    try:
        holds = 0.0 <= float(weight_decay) < float("inf")
    except (TypeError, ValueError):
        holds = False
    if not holds:
        raise ArgumentError(
            "hesse.Risk(model, loss, data, weight_decay)",
            expected="a number weight_decay >= 0",
            got=repr(weight_decay),
            remedy="Leave it out for none.",
        )


def _with_parameters(model: nn.Module, params: Mapping[str, Tensor]) -> nn.Module:
    """A module with these parameters for good, since its backward pass runs it again."""
    own: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    own.update(model.named_buffers())
    memo = {id(tensor): tensor for tensor in own.values()}
    memo.update((id(own[name]), tensor) for name, tensor in params.items())
    return copy.deepcopy(model, memo)


def _arguments(inputs: Any) -> tuple[tuple, dict[str, Any]]:
    """Positional and keyword arguments of the model."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, (list, tuple)) else (inputs,)), {}


def _device(params: Tree) -> torch.device:
    return next(tensors(params)).device


def _squared_norm(params: Tree) -> Tensor:
    return torch.stack([(leaf * leaf).sum() for leaf in tensors(params)]).sum()
