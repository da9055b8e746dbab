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
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hesse.ad.double_backward import differentiating
from hesse.ad.quadratic import Quadratic
from hesse.ad.summands import Summand
from hesse.boundary import public
from hesse.data import selection
from hesse.data.batches import Batch, Batches, Weight, flatten_batch
from hesse.data.known_weights import known_weight
from hesse.data.slicing import Microbatches, first_microbatches
from hesse.data.trees import map_tensors, tensors
from hesse.engine.program_cache import ProgramCache
from hesse.errors import ArgumentError
from hesse.ranks import Ranks, alike
from hesse.result import OneLine
from hesse.risk.arguments import check_model_and_loss, check_weight_decay, reduction_of
from hesse.risk.averaging import Averaging
from hesse.risk.call import BatchLoss, LossCall, ModelCall
from hesse.risk.checks import ParameterNames, check_eval_mode, check_module, trainable
from hesse.risk.per_example import PerExample
from hesse.risk.shared_value import shared_value
from hesse.risk.sharing import Share, check_is_whole, check_sampler, ranks_of
from hesse.risk.trial import constants
from hesse.risk.weighting import Weighting, ignoring_weights
from hesse.vectors.space import Tree

# The number of shapes of data whose programs are kept; more if one sweep meets more.
_SHAPES = 16


class Risk(OneLine):
    r"""The mean loss of a model over data, plus weight decay, as a function of the parameters.

    Args:
        model: an `nn.Module`, or a callable (params, inputs) -> outputs.
        loss: (outputs, targets) -> a scalar, such as `nn.CrossEntropyLoss()`.
        data: a pair (inputs, targets), an iterable of such batches (of any sizes), or a DataLoader.
            Either may be several tensors, as in ((x1, x2), (y1, y2)). Tuples as inputs are
            positional, mappings keyword arguments of the model; a batch that is a mapping is the
            model's keyword arguments and the loss's second argument. Where two pairs could be two
            batches, a tuple is one batch and a list is two. Tensors are moved to the device of the
            parameters.
        weight_decay: lambda in (lambda / 2) |theta|^2 over all parameters given, so that lambda
            theta is added to the gradient, as in `torch.optim`.
        weight: (inputs, targets) -> weight of a batch where its number of examples is not what its
            loss averages over, such as a count of tokens; needed for batches that cannot be cut
            along their first dimension, such as graphs. The losses of torch that average over
            targets (cross entropy with class weights or padding) or elements say it themselves.
        reduction: whether the loss averages ("mean") or adds up ("sum") over a batch; default:
            `loss.reduction` if there is one, else "mean". Sums are added up over the batches.
        params: the tree for `risk.params` when the model is a plain callable.
        group: a process group of `torch.distributed`, or a `DeviceMesh` of one dimension or of all
            processes, which make the same calls, each with its part of the data, maybe none. What
            is not summed over them says so, and takes `risk.local`. Default: one process.

    Calling it, `risk(params)`, gives the scalar, differentiable in params. `params` is any tree
    that the model takes; for a module, a mapping from names to tensors, of all its parameters or
    some (the others stay as they are in the module). Tied weights appear once. Buffers are
    constants: a forward pass that writes to one writes to a copy. Parameters that the loss or the
    model reaches by another way, such as a penalty over `model.parameters()`, are replaced too.

    Raises:
        HesseError: no data, data of unknown form, or data that change from sweep to sweep; a loss
            that is not a scalar; a model in train mode with dropout or BatchNorm, one that draws
            random numbers, or one that changes with every call; a loss whose batches do not average
            to the whole (tested on two slices of the first of several batches, on it together with
            each other one for losses that are not torch's, and on batches that a memory budget
            cuts); a trainable tensor that is no parameter of the module. The model and the loss are
            tested at construction; those of a plain callable without `params`, or of frozen
            parameters, at the first evaluation.

    >>> model = nn.Linear(1, 1, bias=False).double()
    >>> x = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    >>> risk = Risk(model, nn.MSELoss(), [(x[:2], 0 * x[:2]), (x[2:], 0 * x[2:])])   # 2 + 1
    >>> risk
    Risk(Linear, MSELoss, 2 batches, weight_decay=0)
    >>> risk({"weight": torch.tensor([[3.0]], dtype=torch.float64)})   # 9 * (1 + 4 + 9) / 3
    tensor(42., dtype=torch.float64)
    """

    @public("hesse.Risk(model, loss, data)")
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
        group: Any = None,
    ) -> None:
        ranks = ranks_of(group)
        with alike(ranks):
            check_model_and_loss(model, loss, data, params)
            check_sampler(data, ranks)
            self._averages = reduction_of(loss, reduction) == "mean"
            self.model, self.loss, self.weight_decay = model, loss, check_weight_decay(weight_decay)
            check_module(model, ranks)
            self._known_weight = known_weight(loss) if self._averages else None
            self.data = self._batches(data, weight, may_be_empty=ranks is not None)
            self._params = params
            self._names: ParameterNames | None = None
            self.programs = ProgramCache(max(_SHAPES, self.num_summands))
            if isinstance(model, nn.Module):
                self._names = ParameterNames(model)
                self._params = trainable(model) if params is None else params
            self._call_model = ModelCall.of(model)
            self._unchecked: list[Batch] = []
            # With weights for the examples: how, and the risk without them, which is tested.
            self._weighting: Weighting | None = None
            self._plain: Risk | None = None
        self.share = Share.of(self.data, ranks, self.weight_decay, self._averages)
        self._call_model = self._call_model.holding(self._params, self.share)
        self._check_on(self._first)

    def __repr__(self) -> str:
        n, model = self.num_summands, getattr(self.model, "__name__", type(self.model).__name__)
        data = f"{n} {'weighted ' * self.is_weighted}batch{'es' * (n != 1)}"
        data += f" on {self.ranks}" if self.ranks else ""
        return f"Risk({model}, {self.loss_name}, {data}, weight_decay={self.weight_decay:g})"

    @property
    @public("hesse.Risk.params")
    def params(self) -> Tree:
        """The trainable parameters at construction: a copy, which later training leaves alone."""
        if self._params is None:
            raise ArgumentError(
                expected="params= at construction, since the model is a plain callable",
                got="none",
                remedy="Risk(..., params=params), or pass your own tree of parameters.",
            )
        return self._params

    @property
    def num_summands(self) -> int:
        """The number of batches."""
        return self.data.count

    @property
    def ranks(self) -> Ranks | None:
        """The processes over which the risk is a sum; None if all of it is here."""
        return self.share.ranks

    @property
    def local(self) -> Risk:
        """The part of this process: its data with their weights in the whole, as one process has.

        The weight decay is in the part of the first process with data.
        """
        other = self._with(self.data)
        other.share = replace(self.share, ranks=None)
        other.weight_decay = self.weight_decay if self.share.counts_decay else 0.0
        return other

    @property
    def averages(self) -> bool:
        """Whether the loss is a mean over the data, not a sum."""
        return self._averages

    @property
    def is_weighted(self) -> bool:
        """Whether examples have weights."""
        return self._plain is not None

    @property
    def loss_name(self) -> str:
        """The name of the loss, for messages."""
        return getattr(self.loss, "__name__", type(self.loss).__name__)

    def with_loss(self, loss: Callable[[Any, Any], Tensor]) -> Risk:
        """The same with another loss of the same reduction and weights, which is not tested."""
        other = self._with(self.data)
        other.loss, other.programs = loss, ProgramCache(self.programs.limit)
        return other

    @public("hesse.Risk.on(data)")
    def on(self, data: Any, *, weight: Weight | None = None) -> Risk:
        """The same model, loss and weight decay on other data; the programs are shared.

        The losses of several batches are tested as at construction.
        """
        other = self.unchecked_on(data, weight)
        if other.share.has_several:
            other._check_on(other._first)
        return other

    def unchecked_on(self, data: Any, weight: Weight | None = None) -> Risk:
        """As `on`, without the test that the losses of batches average."""
        with alike(self.ranks):
            check_sampler(data, self.ranks)
            weight = self.data.weight if weight is None else weight
            other = self._with(self._batches(data, weight, may_be_empty=self.ranks is not None))
        other.share = Share.of(other.data, self.ranks)
        return other

    def with_unseen_batches(self) -> Risk:
        """The same with the batches of which the loss sees nothing, and which may then be NaN."""
        return self._with(self.data.with_unseen())

    def in_microbatches(self, most: int) -> Risk:
        """The same risk in microbatches of at most `most` examples; the programs are shared."""
        small = self._with(
            self._batches(Microbatches(self.data, most), self.data.weight, is_cut=True)
        )
        if self._plain is not None:
            return small
        # At least two examples each, so that they can be cut; several, which need not be alike.
        small._check_on(first_microbatches(self.data.first, max(2, most), self.data.weigh))
        return small

    @public("{self}.weighted(weights)")
    def weighted(self, weights: Tensor, at: Tree | None = None) -> Risk:
        r"""The same risk with a factor for what each example adds to it.

        $$ R_w(\theta) = \sum_n w_n R_n(\theta) + \frac{\lambda}{2} \lVert\theta\rVert^2,
           \qquad R_1 = R $$

        What a mean divides by stays as it is, so that w_n = 0 takes an example out, and the
        derivative in w_n is the loss that it adds: the convention of influence functions.

        Args:
            weights: w, an entry for each example, in the order of the batches. It takes the place
                of weights given before. Risks that differ in their weights share programs.
            at: parameters at which the loss is tested; default those at construction.

        Raises:
            HesseError: a loss that does not average or add up by a loss function of torch, or adds
                something else; examples that influence one another; weights of another length.

        >>> x = torch.tensor([[1.0], [2.0]])
        >>> risk = Risk(nn.Linear(1, 1, bias=False), nn.MSELoss(), (x, 0 * x))
        >>> risk.weighted(torch.tensor([1.0, 0.0]))({"weight": torch.ones(1, 1)})       # 1 / 2
        tensor(0.5000)
        """
        plain = self if self._plain is None else self._plain
        params = self.share.whole(plain.params if at is None else at)
        with alike(self.ranks):
            weights = selection.checked_weights(weights, selection.total_examples(plain.data))
            weighting = None
            if plain.data.count:
                batch = plain.data.first_of_several
                weighting = Weighting.of(plain.loss_of, params, batch, plain.loss_name)
            data = selection.WithWeights(plain.data, weights)
            weigh, known = ignoring_weights(plain.data.weight), ignoring_weights(plain.data.known)
            held = selection.kept(data, plain.holds_data)
            other = plain._with(
                Batches(held, weigh, known=known, may_be_empty=not plain.data.count)
            )
        other._weighting, other._plain, other._known_weight = weighting, plain, known
        return other

    @public("{self}.subset(indices)")
    def subset(self, indices: Any) -> Risk:
        """The same risk on some of its examples: a mean is over these alone.

        Args:
            indices: places of examples in the order of the batches, which may repeat, or a mask.
                They stay in their batches; a batch without any is left out. Each of several
                processes chooses among its own examples, maybe none.

        >>> x = torch.tensor([[1.0], [2.0]])
        >>> risk = Risk(nn.Linear(1, 1, bias=False), nn.MSELoss(), (x, 0 * x))
        >>> risk.subset([1])({"weight": torch.ones(1, 1)})
        tensor(4.)
        """
        with alike(self.ranks):
            data = selection.selected(self.data, indices, may_be_empty=self.ranks is not None)
        other = self.unchecked_on(data)
        if self._plain is not None:
            other._plain = self._plain.subset(indices)
        return other

    def _batches(self, data: Any, weight: Weight | None, **options: bool) -> Batches:
        if not self._averages and weight is not None:  # a sum has no weights
            weight = _one
        return Batches(data, weight, known=self._known_weight, **options)

    @property
    def _first(self) -> list[Batch]:
        return [self.data.first] if self.data.count else []

    def _with(self, data: Batches) -> Risk:
        other = copy.copy(self)
        other.data, other._unchecked = data, []
        self.programs.limit = max(self.programs.limit, other.num_summands)
        return other

    @public("hesse.Risk(model, loss, data)(params)")
    def __call__(self, params: Tree) -> Tensor:
        """R(params), shape (). Its graph spans all batches; products go batch by batch instead."""
        if self.ranks is not None:
            return shared_value(self.ranks, self.local._value, params)
        return self._value(params)

    def _value(self, params: Tree) -> Tensor:
        self.check_at(params)
        params = map_tensors(torch.clone, params)  # a model may write to them
        parts = [s.coefficient * s.function(params) for s in self.summands()]
        return torch.stack(parts).sum() if parts else torch.zeros(())

    def summands(self) -> Iterator[Summand]:
        """R = sum_b c_b loss_b + (lambda / 2) |params|^2, one summand for each batch."""
        for coefficient, batch in self.batches():
            data, key = flatten_batch(batch)
            yield Summand(coefficient, self.loss_of(batch), data, key)
        if self.weight_decay:
            yield Summand(1.0, Quadratic(self.weight_decay), key="weight decay")

    def batches(self) -> Iterator[tuple[float, Batch]]:
        """(c_b, batch): R = sum_b c_b loss_b, without the weight decay."""
        check_is_whole(self)
        for batch in self.data:
            yield (batch.weight / self.share.weight if self._averages else 1.0), batch

    per_example = property(PerExample)
    sweep_is_free = True

    @property
    def holds_data(self) -> bool:
        """Whether the batches are tensors that stay, not made anew in every sweep."""
        return self.data.are_held

    def outputs(self, params: Tree, batch: Batch) -> Any:
        """The outputs of the model for the inputs of a batch."""
        if self._names is not None:
            self._names.check(params)
        return self.loss_of(batch).outputs(params)

    def loss_of_batch(self, params: Tree, batch: Batch) -> Tensor:
        """The scalar loss of a batch at these parameters."""
        if self._names is not None:
            self._names.check(params)
        return self.loss_of(batch)(params)

    def loss_of(self, batch: Batch) -> BatchLoss:
        """The loss of a batch as a function of the parameters, and of the outputs of the model."""
        return BatchLoss(self._call_model, LossCall(self.loss), batch, self._weighting)

    @public("hesse.Risk(model, loss, data)")
    def check_at(self, params: Tree) -> None:
        """Test that model and loss are what the class says, and again after `model.train()`."""
        if self._names is not None:
            self._names.check(params)
        if self._plain is not None:
            self._plain.check_at(params)
            return
        if not self._call_model.is_current:
            check_eval_mode(self.model)
            self._call_model = ModelCall.of(self.model, self._call_model.held)
            self._unchecked = self._unchecked or self._first
        if self._unchecked:
            self._check_model(params)

    def _check_model(self, params: Tree) -> None:
        params = constants(params)
        with differentiating():  # a model may differentiate itself in its inputs
            slices = self.share.has_several or self.num_summands > 1
            averaging, rtol = Averaging(
                self._call_model, self.loss, self.data, self._averages, slices
            ).tested(params, self._unchecked)
            is_known = self._known_weight is not None and self.data.weight is None
            if self._unchecked and self.num_summands > 1 and not is_known:
                averaging.check_batches(params, rtol)
        self._call_model, self._unchecked = averaging.call, []

    def _check_on(self, batches: list[Batch]) -> None:
        """Test model and loss on these batches: now if the parameters are known, or later."""
        whole = self.share.whole(self._params)
        with alike(self.ranks):
            self._unchecked = batches
            if next(tensors(whole), None) is not None:  # not all frozen
                self.check_at(whole)


def _one(inputs: Any, targets: Any) -> float:
    return 1.0
