# SPDX-License-Identifier: Apache-2.0
"""`CurvatureTracker`: the curvature of a loss while a network is trained on it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from hesse.apps.training.callbacks import lightning_callback, transformers_callback
from hesse.apps.training.history import CurvatureHistory, CurvatureMeasurement
from hesse.apps.training.probe import Probe, layers_of
from hesse.apps.training.rates import Rates, rates_of
from hesse.apps.training.sinks import sinks_of
from hesse.apps.training.time_budget import TimeBudget
from hesse.apps.training.undisturbed import undisturbed, wait_for
from hesse.boundary import public, warn
from hesse.curvature.point import point_of
from hesse.data.forms import is_one_batch
from hesse.errors import (
    ArgumentError,
    StructureError,
    check_callable,
    check_count,
    check_flags,
    is_number,
    kind_of,
)
from hesse.result import OneLine
from hesse.risk.call import ModelCall, device_of
from hesse.risk.risk import Risk
from hesse.vectors.random import check_generator
from hesse.vectors.space import Space, Tree

_SAMPLED = 64  # examples whose gradients give the noise scale


class CurvatureTracker(OneLine):
    r"""Sharpness, and what else the curvature tells, every so many steps of a training.

    $$ \lambda_{\max}(H) \;\text{against}\; \frac{2 (1 + \beta)}{\eta}, \qquad
       B = \frac{\operatorname{tr} S}{\lVert g \rVert^2}, \qquad
       B_H = \frac{\operatorname{tr} (H S)}{g^T H g} $$

    Gradient descent of steps eta on all data sharpens the loss until lambda_max = 2 / eta, and then
    stays about there: the edge of stability; with heavy-ball momentum beta at 2 (1 + beta) / eta.
    B and B_H are the batch sizes beyond which a batch is hardly better than a smaller one; S is the
    covariance of the gradients g_i of examples. Of methods that precondition (Adam, Shampoo) the
    curvature of the preconditioned loss counts: there is no ratio.

    A measurement leaves no trace: the model is put into eval mode and every module back into its
    own; gradients, the global random numbers and the parameters stay as they are.

    Args:
        risk_or_batches: the `Risk` to measure on: a fixed part of the training data, 1,000 examples
            do; or batches, of which a risk of `model` and `loss` is made, read once.
        model, loss: with batches; not with a risk, which has its own.
        every: measure at the steps 0, every, 2 every, ...
        top: how many eigenvalues of H.
        per_layer: also the largest eigenvalue of each layer's block; or a list of names or
            patterns of blocks, such as ["encoder.*", "head.*"].
        trace: also the trace of H, to 10 %.
        noise: also B and B_H, from the gradients of 64 random examples; or of so many.
        budget: the time of all measurements as a share of the time of the rest of the training;
            None for no limit. The first is always taken; another is skipped, with a warning for
            the first one that is, while it would exceed the budget at the price of the dearest.
        file: path of a .jsonl or .csv file, to which each measurement is appended.
        writer: a `SummaryWriter` of TensorBoard, a run of Weights & Biases, or a function that is
            called with each `CurvatureMeasurement`.
        clock: a function that returns seconds.
        generator: of starts, probes and examples; default one of its own, with a fixed seed.

    `history` holds the measurements; `history.plot()` draws them.

    Cost: 5 to 15 products with H and as many with the Gauss-Newton matrix, which start from the
        eigenvectors found last; as many for each layer; for the trace some tens, for the noise a
        gradient and a product for each example. Between measurements two vectors are held, and
        one for each layer.

    Raises:
        HesseError: no risk and no model; options out of range; a file that cannot be written.

    References: Cohen et al. 2021, arXiv:2103.00065 (edge of stability); McCandlish et al. 2018,
        arXiv:1812.06162 (noise scale); Gur-Ari, Roberts & Dyer 2018, arXiv:1812.04754 (the gradient
        in the top eigenvectors).

    >>> x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    >>> model = nn.Linear(1, 1, bias=False).double()
    >>> tracker = CurvatureTracker([(x, 0 * x)], model, nn.MSELoss(), every=10, budget=None)
    >>> row = tracker.step(learning_rate=0.1)
    >>> round(row.sharpness, 6), round(row.stability, 6)          # 1 + 4, times 0.1 / 2
    (5.0, 0.25)
    """

    @public("hesse.apps.CurvatureTracker(risk_or_batches, every={every})")
    def __init__(
        self,
        risk_or_batches: Any,
        model: nn.Module | None = None,
        loss: Callable[[Any, Any], torch.Tensor] | None = None,
        *,
        every: int = 100,
        top: int = 1,
        per_layer: bool | Sequence[str] = False,
        trace: bool = False,
        noise: bool | int = False,
        budget: float | None = 0.05,
        file: Any = None,
        writer: Any = None,
        clock: Callable[[], float] = time.perf_counter,
        generator: torch.Generator | None = None,
    ) -> None:
        check_flags(trace=trace)
        check_callable(clock=clock)
        check_generator(generator)
        self.every = check_count("every", every, 1)
        self.risk = _risk_of(risk_or_batches, model, loss)
        self._probe = Probe(
            self.risk,
            check_count("top", top, 1),
            _layers(self.risk, per_layer),
            trace,
            _sampled(self.risk, noise),
            torch.Generator().manual_seed(0) if generator is None else generator,
        )
        self._budget = TimeBudget(_share(budget), clock)
        writes = self.risk.ranks is None or self.risk.ranks.rank == 0
        self._sinks = sinks_of(file, writer) if writes else []
        self._steps, self._history, self._has_warned = 0, CurvatureHistory(), False

    def __repr__(self) -> str:
        return f"CurvatureTracker(every {self.every} steps, {len(self._history)} measurements)"

    @property
    def history(self) -> CurvatureHistory:
        """The measurements so far."""
        return self._history

    def step(
        self,
        params: Tree | nn.Module | None = None,
        learning_rate: float | torch.optim.Optimizer | None = None,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
    ) -> CurvatureMeasurement | None:
        """Count a step of the training, and measure if that is due and within the budget.

        Args:
            params: where the training is: parameters as the risk takes them, or a module of the
                risk's structure; default the model of the risk as it is now.
            learning_rate: eta, or the optimizer. If that is `torch.optim.SGD` it gives eta, beta
                and the weight decay, the largest of its groups, which counts in `stability` where
                it is more than that of the risk.
            momentum: beta.
            nesterov: whether the momentum is Nesterov's.

        Returns:
            The measurement, or None. A loss that is not finite is recorded as it is.
        """
        step, self._steps = self._steps, self._steps + 1
        if step % self.every:  # nearly always: not even the boundary is entered
            return None
        return self._measure(step, params, learning_rate, momentum, nesterov)

    @public("hesse.apps.CurvatureTracker.step()")
    def _measure(
        self, step: int, params: Any, learning_rate: Any, momentum: float, nesterov: bool
    ) -> CurvatureMeasurement | None:
        """Measure, if that is within the budget."""
        if not self._is_within_budget():
            return None
        rates = rates_of(learning_rate, momentum, nesterov, self.risk.weight_decay)
        point = _point(self.risk, params)
        device = device_of(point)
        wait_for(device)
        with self._budget.spending(), undisturbed(self.risk.model, device):
            found = self._probe.at(point)
        row = _measurement(step, found, rates, self._budget.last)
        self._history = CurvatureHistory((*self._history.rows, row))
        for sink in self._sinks:
            sink(row)
        return row

    @public("hesse.apps.CurvatureTracker.lightning()")
    def lightning(self) -> Any:
        """A callback for `lightning.Trainer(callbacks=[...])`, of the model that the risk has."""
        return lightning_callback(self)

    @public("hesse.apps.CurvatureTracker.transformers()")
    def transformers(self) -> Any:
        """A callback for `transformers.Trainer(callbacks=[...])`, of the model of the risk."""
        return transformers_callback(self)

    def state_dict(self) -> dict[str, Any]:
        """All that a tracker of the same arguments needs to go on."""
        return {
            "steps": self._steps,
            "history": [row.to_dict() for row in self._history],
            "vectors": {name: v.clone() for name, v in self._probe.vectors.items()},
            "budget": self._budget.state(),
            "generator": self._probe.generator.get_state(),
        }

    @public("hesse.apps.CurvatureTracker.load_state_dict(state)")
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Args:
            state: what `state_dict` returned.
        """
        wanted = {"steps", "history", "vectors", "budget", "generator"}
        if not isinstance(state, dict) or state.keys() != wanted:
            raise StructureError(
                expected=f"a state with {', '.join(sorted(wanted))}",
                got=f"{sorted(state)}" if isinstance(state, dict) else kind_of(state),
                remedy="Give what CurvatureTracker.state_dict() returned.",
            )
        self._steps = state["steps"]
        self._history = CurvatureHistory(
            tuple(CurvatureMeasurement.of(row) for row in state["history"])
        )
        device = device_of(_point(self.risk, None))
        self._probe.vectors = {name: v.to(device) for name, v in state["vectors"].items()}
        self._budget.restore(state["budget"])
        self._probe.generator.set_state(state["generator"].cpu())

    def _is_within_budget(self) -> bool:
        """Whether to measure now; all ranks decide alike."""
        allowed = self._budget.allows()
        if self.risk.ranks is not None:
            allowed = all(row[0] for row in self.risk.ranks.gather(float(allowed)))
        if not allowed and not self._has_warned:
            self._has_warned = True
            warn(
                f"A measurement takes {self._budget.last:.2g} s, and one every {self.every} steps "
                f"would take more than budget={self._budget.share:g} of the training time: some "
                "are skipped. Raise every= or budget=, or give a smaller probe set."
            )
        return allowed


def _measurement(
    step: int, found: dict[str, Any], rates: Rates | None, seconds: float
) -> CurvatureMeasurement:
    """The row of the history."""
    sharpness, about = found.get("sharpness"), {}
    if sharpness is not None:
        about["largest_rate"] = (rates or Rates(0.0)).largest_rate(sharpness)
    if rates is not None:
        about |= {"learning_rate": rates.learning_rate, "momentum": rates.momentum}
        if sharpness is not None:
            about["stability"] = rates.stability(sharpness)
    return CurvatureMeasurement(step=step, seconds=seconds, **found, **about)


def _risk_of(given: Any, model: Any, loss: Any) -> Risk:
    """The probe set, as a risk."""
    if isinstance(given, Risk):
        if model is not None or loss is not None:
            raise ArgumentError(
                expected="a Risk alone, which has a model and a loss",
                got="a Risk and another model or loss",
                remedy="Leave out model and loss.",
            )
        return given
    if not isinstance(model, nn.Module) or loss is None:
        raise StructureError(
            expected="a hesse.Risk; or batches with the model and the loss",
            got=f"{kind_of(given)}, and {'no loss' if loss is None else 'no nn.Module'}",
            remedy="CurvatureTracker(risk), or CurvatureTracker(batches, model, loss).",
        )
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with undisturbed(model, device):  # a loader that shuffles draws random numbers
        is_pair = isinstance(given, dict) or is_one_batch(given)
        return Risk(model, loss, given if is_pair else list(given))


def _sampled(risk: Risk, noise: Any) -> int:
    """How many examples give the noise scale; 0 for none."""
    if noise is False:
        return 0
    count = _SAMPLED if noise is True else check_count("noise", noise, 2)
    if risk.per_example.number < 2:
        raise ArgumentError(
            expected="at least two examples, for the covariance of their gradients",
            got="one",
            remedy="Give more data, or leave out noise.",
        )
    return count


def _layers(risk: Risk, per_layer: Any) -> list[str]:
    if isinstance(per_layer, bool):
        return layers_of(risk) if per_layer else []
    if not isinstance(per_layer, Sequence) or isinstance(per_layer, str):
        raise ArgumentError(
            expected="per_layer as True, False, or a list of names or patterns",
            got=repr(per_layer),
            remedy="Give, for instance, ['encoder.*', 'head.*'].",
        )
    space = Space.of(risk.params, what="params", ranks=risk.ranks)
    for name in per_layer:
        space.subspace(name)  # raises if there is none
    return list(per_layer)


def _share(budget: Any) -> float:
    if budget is None:
        return math.inf
    if not (is_number(budget) and budget > 0.0):
        raise ArgumentError(
            expected="budget > 0, a share of the training time",
            got=repr(budget),
            remedy="Give 0.05 for 5 %, or None for no limit.",
        )
    return float(budget)


def _point(risk: Risk, params: Any) -> Tree:
    """The parameters of a step, as the risk takes them."""
    if not isinstance(params, nn.Module):
        point = point_of(risk, params, "params")
        # Raises for what is no tree, as an optimizer.
        space = Space.of(point, what="params", ranks=risk.ranks)
        return space.build(list(space.leaves(point, what="params")))
    module: Any = ModelCall.of(params).model
    named = dict(module.named_parameters(remove_duplicate=False))
    names = Space.of(risk.params, what="params", ranks=risk.ranks).names
    missing = [name for name in names if name not in named]
    if missing or not isinstance(risk.params, dict):
        raise StructureError(
            expected="a module with the parameters of the risk",
            got=f"none named {missing[:3]}" if missing else "a risk of a plain callable",
            remedy="Give the module that the risk has, or leave it out.",
        )
    return {name: named[name].detach() for name in names}
