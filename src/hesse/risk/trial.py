# SPDX-License-Identifier: Apache-2.0
"""`try_model`: the first evaluations of a model and a loss, from which it is learnt how to call it.

Which buffers does it write to, does it run again in its backward pass, does it reach parameters by
another way than attributes, does it store what it computed from them, is it deterministic, in which
precision does it compute?
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hesse.ad.determinism import run_deterministic
from hesse.ad.double_backward import noting_recomputation
from hesse.ad.graph_nodes import check_seen_whole, graph_leaves
from hesse.ad.hessian import value_and_gradient
from hesse.ad.other_leaves import check_other_leaves
from hesse.ad.torch_calls import TorchCalls
from hesse.ad.variables import detached
from hesse.data.batches import Batch
from hesse.data.reduction import agree, rounding_tolerance
from hesse.data.trees import tensors
from hesse.errors import RandomnessError
from hesse.risk.arguments import explaining
from hesse.risk.buffers import restoring_buffers
from hesse.risk.call import BatchLoss, LossCall, ModelCall, device_of
from hesse.risk.nearby import evaluated_nearby
from hesse.risk.stored import FirstParameters
from hesse.risk.substitution import Substitution, check_own_leaves
from hesse.vectors.space import Space, Tree


@dataclass(frozen=True)
class Trial:
    """How the model is to be called, and how exact its loss is."""

    call: ModelCall
    rtol: float
    """The relative rounding error of two values of the loss."""


@dataclass
class _Run:
    """What one evaluation showed."""

    in_model: set[str]
    in_loss: set[str]
    dtypes: set[torch.dtype]
    leaves: dict[int, Tensor]


def constants(params: Tree) -> Tree:
    """Copies of the parameters, to which a model may write, that require no gradient."""
    space = Space.of(params, what="params")
    return space.build([detached(leaf).clone() for leaf in space.leaves(params, what="params")])


def try_model(call: ModelCall, loss_of: LossCall, params: Tree, batch: Batch) -> Trial:
    """Evaluate the loss of a batch two or three times, at `constants`.

    Raises RandomnessError if it is not deterministic or changes from call to call, FunctionError if
    it reaches parameters that cannot be replaced, or stores what it computed from them.
    """
    with call.alone:
        return _tried(call.untried, loss_of, params, batch)


def _tried(call: ModelCall, loss_of: LossCall, params: Tree, batch: Batch) -> Trial:
    runs, earlier = list[_Run](), FirstParameters(params)

    def value(call: ModelCall) -> Tensor:
        if runs:
            value, run = _evaluate(call, loss_of, params, batch)
        else:
            with torch.inference_mode(False), torch.enable_grad():
                value, run = _evaluate(call, loss_of, earlier.params, batch)
        runs.append(run)
        return value

    with explaining(params, batch):
        if isinstance(call.model, nn.Module):
            with restoring_buffers(call.model) as written:
                first, recomputes = noting_recomputation(
                    lambda: run_deterministic(lambda: value(call))
                )
            call = replace(call, written_buffers=tuple(written), recomputes=recomputes)
            first = run_deterministic(lambda: value(call)) if written else first
        else:
            first, recomputes = noting_recomputation(lambda: run_deterministic(lambda: value(call)))
            if recomputes:
                _check_recomputation(BatchLoss(call, loss_of, batch), params)
        before = runs[-1]
        second, run = _evaluate(call, loss_of, params, batch, known=before)
    rtol = max(
        rounding_tolerance(dtype)
        for dtype in {first.dtype, *run.dtypes, *(leaf.dtype for leaf in tensors(params))}
    )
    check_repeats(float(first), float(second), rtol)
    earlier.check_later(run.leaves, call.model)
    earlier.look_for_earlier(runs[0].leaves, call.model)
    # A leaf in one graph only was made by the model, as one that differentiates itself does.
    shared = [leaf for key, leaf in run.leaves.items() if key in before.leaves]
    if isinstance(call.model, nn.Module):
        check_own_leaves(shared, call.model, loss_of.loss, call.given(params))
    else:
        space = Space.of(params, what="params")
        names = [f"params[{name!r}]" for name in space.names]
        check_other_leaves(shared, space.leaves(params, what="params"), names)
    call = replace(
        call,
        substitutes=bool(run.in_model | run.in_loss),
        read_by_loss=tuple(sorted(run.in_loss)),
    )
    return Trial(call, rtol)


def _check_recomputation(f: BatchLoss, params: Tree) -> None:
    """Raise DerivativeError if the backward pass of a function runs a module as it is.

    That is seen away from the parameters that the module has.
    """
    near, _ = evaluated_nearby(lambda point: float(f(point)), params, math.isfinite)
    space = Space.of(near)
    value_and_gradient(lambda leaves: f(space.build(list(leaves))), space.leaves(near))


def check_repeats(first: float, second: float, rtol: float) -> None:
    """Raise RandomnessError unless two losses of one batch are the same."""
    if not agree(first, second, rtol):
        raise RandomnessError(
            expected="a model that gives the same loss for the same batch",
            got=f"{first:.6g}, then {second:.6g}",
            remedy="Call model.eval(); seed or switch off noise; let forward change nothing "
            "that the next call depends on.",
        )


def _evaluate(
    call: ModelCall,
    loss_of: LossCall,
    params: Tree,
    batch: Batch,
    known: _Run | None = None,
) -> tuple[Tensor, _Run]:
    """The loss of a batch at parameters that require no gradient; `known`: an earlier run."""
    moved = batch.to(device_of(params))
    if known is not None and not known.in_model | known.in_loss:  # nothing was replaced
        with TorchCalls():
            value = loss_of(call(params, moved.inputs), moved.targets)
        return value.detach(), replace(known, leaves=_leaves(value, batch, moved))
    module = call.model if isinstance(call.model, nn.Module) else None
    given: Mapping[str, Tensor] = {} if module is None else call.given(params)
    with TorchCalls(), Substitution(module, given) as substitution:
        outputs = call(params, moved.inputs)
        in_model, substitution.reached = substitution.reached, set()
        value = loss_of(outputs, moved.targets)
    leaves, reached = _leaves(value, batch, moved), substitution.reached
    return value.detach(), _Run(in_model, reached, substitution.dtypes, leaves)


def _leaves(value: Tensor, batch: Batch, moved: Batch) -> dict[int, Tensor]:
    """The leaves in the graph of a value that are none of the batch."""
    check_seen_whole(value)
    leaves = graph_leaves(value)
    for tensor in tensors([batch.inputs, batch.targets, moved.inputs, moved.targets]):
        leaves.pop(id(tensor), None)
    return leaves
