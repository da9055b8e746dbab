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

from hesse.ad.evaluate import check_scalar, run_deterministic, twice_differentiable
from hesse.ad.prepared import Preparations
from hesse.ad.recomputation import noting_recomputation
from hesse.ad.terms import Term
from hesse.data import Batch, Batches, SmallBatches, Weight, fingerprint, split_batch, tensors
from hesse.errors import ArgumentError, DataError, RandomnessError, StructureError
from hesse.vectors import Tree


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
            loss averages over, such as a count of tokens.
        reduction: whether the loss averages ("mean") or adds up ("sum") over a batch; default:
            what `loss.reduction` says, else "mean". A sum is added up over the batches.
        params: the tree for `risk.params` when the model is a plain callable.

    Calling it, `risk(params)`, gives the scalar, differentiable in params. `params` is any tree
    that the model takes; for a module, a mapping from names to tensors, of all its parameters or
    some (the others stay as they are in the module). Tied weights appear once; buffers are
    constants.

    Raises:
        HesseError: no data or data of unknown form; a loss that is not a scalar; a model that is in
            train mode with dropout or BatchNorm, or draws random numbers; a loss whose batches do
            not average to the whole (checked on the first of several batches).

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
        self.model, self.loss, self.weight_decay = model, loss, float(weight_decay)
        self._reduction = reduction or getattr(loss, "reduction", "mean")
        _check_arguments(model, self._reduction, self.weight_decay)
        self._check_eval_mode()
        self.data = Batches(data, weight, call="hesse.Risk(model, loss, data)")
        self._params = params
        self._recomputes = False
        # Programs of products, for every shape of batch; `on` shares them.
        self.preparations: Preparations = {}
        if isinstance(model, nn.Module):
            self._names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        if params is None and isinstance(model, nn.Module):
            self._params = {
                name: parameter.detach().clone()
                for name, parameter in model.named_parameters()
                if parameter.requires_grad
            }
        if next(tensors(self._params), None) is not None:  # not all frozen
            self._check_first_batch(self._params)

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
        """The same model, loss and weight decay on other data; what was prepared is shared."""
        other = copy.copy(self)
        other.data = Batches(data, weight or self.data.weight, call="hesse.Risk.on(data)")
        return other

    def in_small_batches(self, most: int) -> Risk:
        """The same risk, its data in batches of at most `most` examples; shares its programs."""
        small = self.on(SmallBatches(self.data, most))
        if self._params is not None:
            small._check_first_batch(
                self._params
            )  # that the loss of parts is the loss of the whole
        return small

    def __call__(self, params: Tree) -> Tensor:
        """R(params), shape (). Its graph spans all batches; products go batch by batch instead."""
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
        if self._recomputes:
            return _with_parameters(self.model, params)(*args, **kwargs)
        return torch.func.functional_call(self.model, params, args, kwargs)

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
        unknown = params.keys() - self._names
        if unknown:
            raise StructureError(
                "hesse.Risk(params)",
                expected=f"names of parameters of the model, such as {sorted(self._names)[:3]}",
                got=f"unknown names {sorted(unknown)[:3]}",
                remedy="Use risk.params or dict(model.named_parameters()).",
            )

    def _check_eval_mode(self) -> None:
        if not isinstance(self.model, nn.Module):
            return
        for name, module in self.model.named_modules():
            if module.training and _is_random_or_coupled(module):
                raise RandomnessError(
                    "hesse.Risk(model, loss, data)",
                    expected="a model whose loss is a deterministic mean over examples",
                    got=f"'{name or 'the model'}' ({type(module).__name__}) in train mode",
                    remedy="Call model.eval() first; curvature is then that of the deterministic "
                    "model (BatchNorm with its running statistics, dropout off).",
                )

    def _check_first_batch(self, params: Tree) -> None:
        """One deterministic forward pass; with several batches, that their losses average."""
        batch = self.data.first

        def value(part: Batch) -> Tensor:
            part = part.to(_device(params))
            return self.batch_loss(self.outputs(params, part), part).detach()

        with twice_differentiable():  # a model may differentiate itself in its inputs
            whole, recomputes = noting_recomputation(
                lambda: run_deterministic(lambda: value(batch), "hesse.Risk(model, loss, data)")
            )
            self._recomputes = recomputes and isinstance(self.model, nn.Module)
            parts = split_batch(batch, self.data.weigh) if self.data.count > 1 else None
            if parts is None:
                return
            values = [float(value(part)) for part in parts]
        mean = self._reduction == "mean"
        total = sum(part.weight * v if mean else v for part, v in zip(parts, values, strict=True))
        combined = total / sum(part.weight for part in parts) if mean else total
        tolerance = 1e3 * torch.finfo(whole.dtype).eps ** 0.75
        if abs(combined - float(whole)) > tolerance * max(abs(float(whole)), abs(combined)):
            raise DataError(
                "hesse.Risk(model, loss, data)",
                expected="batches whose losses combine to the loss of the whole: the "
                + ("weighted mean" if mean else "sum")
                + f" over two parts of the first batch is {combined:.6g}",
                got=f"{float(whole):.6g} for the batch itself",
                remedy="If the loss adds up over examples, say reduction='sum'; if it averages "
                "over something else (tokens that are not padding, class weights), say how much "
                "with weight=lambda inputs, targets: ...; a loss that couples examples needs all "
                "data in one batch.",
            )


def _is_random_or_coupled(module: nn.Module) -> bool:
    """Whether a module in train mode draws random numbers or mixes the examples of a batch."""
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)):
        return True
    rate = getattr(module, "p", None) if "Dropout" in type(module).__name__ else None
    if rate is None and isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        rate = module.dropout
    return isinstance(rate, (int, float)) and rate > 0.0


def _check_arguments(model: Any, reduction: str, weight_decay: float) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise ArgumentError(
            "hesse.Risk(model, loss, data)",
            expected="a module in Python, or a callable (params, inputs) -> outputs",
            got="a module of torch.jit, whose parameters cannot be replaced",
            remedy="Give the module that was scripted or traced.",
        )
    if reduction not in ("mean", "sum"):
        raise ArgumentError(
            "hesse.Risk(model, loss, data)",
            expected="a loss that reduces a batch to a scalar: reduction 'mean' or 'sum'",
            got=f"reduction={reduction!r}",
            remedy="Construct the loss with reduction='mean'.",
        )
    if not weight_decay >= 0.0:
        raise ArgumentError(
            "hesse.Risk(model, loss, data, weight_decay)",
            expected="weight_decay >= 0",
            got=repr(weight_decay),
            remedy="Leave it out for none.",
        )


def _with_parameters(model: nn.Module, params: Mapping[str, Tensor]) -> nn.Module:
    """A module with these parameters for good, since its backward pass runs it again."""
    own = dict(model.named_parameters(remove_duplicate=False))
    memo = {id(tensor): tensor for tensor in (*own.values(), *model.buffers())}
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
