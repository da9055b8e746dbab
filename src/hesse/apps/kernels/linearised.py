# SPDX-License-Identifier: Apache-2.0
"""`linearised`: a model that is linear in the change of its parameters, fitted in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hesse.apps.kernels.filters import Flow, Ridge, Step
from hesse.apps.kernels.outputs import (
    Model,
    jacobian_of,
    outputs_of,
    point_of_model,
    residual_of,
    risk_of,
)
from hesse.boundary import public, warn
from hesse.checkpoint import FilePath, same_generator
from hesse.curvature.described import described
from hesse.curvature.jacobian import jacobian_operator
from hesse.errors import ArgumentError, NonFiniteError, Status, check_tolerances, is_number
from hesse.operators.algebra import LinearOperator
from hesse.result import OneLine, Result
from hesse.risk.risk import Risk
from hesse.vectors.space import Space, Tree

Preconditioning = (
    LinearOperator
    | Tensor
    | Literal["auto", "trace-kernel", "nystrom", "pivoted-cholesky", "jacobi"]
    | None
)


@dataclass(frozen=True, repr=False)
class LinearisedFit(Result):
    """A linearised model that was fitted to data."""

    change: Tree
    """theta - theta_0, a tree like the parameters."""
    residual_norm: float
    """|Y - f_0|, what there was to fit."""
    space: str
    """"outputs" where the system was in the space of the outputs, else "parameters"."""
    products: int
    """Products with K, or with J and J' (two make one with K), those for a preconditioner too."""
    converged: bool
    """Whether the tolerance was met."""
    status: Status
    """Why the iteration ended."""
    model: Linearised = field(repr=False)
    """What was fitted."""

    @public("hesse.apps.LinearisedFit.predict(x2)")
    def predict(self, x2: Any) -> Any:
        """f_0(x2) + J(x2) (theta - theta_0), like the outputs.

        Args:
            x2: one batch of inputs, as the model takes them. Of several processes each may have
                its own; where parameters are sharded, all of them call this.

        Cost: the outputs and a product with J.
        """
        g = outputs_of(self.model.g, x2)
        space, params = self.model.space, self.model.params
        params, change = space.whole_tree(params), space.whole_tree(self.change)
        with torch.no_grad():
            f = g(params)
        return _added(f, jacobian_operator(g, params) @ change)


@dataclass(frozen=True, repr=False)
class Linearised(OneLine):
    """f_0(x) + J(x) (theta - theta_0); see `linearised`."""

    g: Model
    """The model."""
    params: Tree
    """theta_0."""

    def __repr__(self) -> str:
        return f"Linearised({described(self.g)}, {self.space.n})"

    @property
    def space(self) -> Space:
        """Of the parameters."""
        return _space(self.g, self.params)

    @public("hesse.apps.linearised(g, params).fit(x, y)")
    def fit(
        self,
        x: Any = None,
        y: Any = None,
        *,
        ridge: float = 0.0,
        time: float = math.inf,
        preconditioner: Preconditioning = "auto",
        rtol: float = 1e-6,
        max_products: int | None = None,
        generator: torch.Generator | None = None,
        progress: bool = False,
        checkpoint: FilePath = None,
    ) -> LinearisedFit:
        r"""Train by the squared loss |f - Y|^2 / 2, to the end or for a time.

        $$ \theta - \theta_0 = J^T \varphi(K + \rho I)\, (Y - f_0), \qquad
           \varphi(\lambda) = \frac{1 - e^{-\lambda t}}{\lambda}, $$

        with K = J J' and rho the ridge. This is where gradient flow is at the time t, of the sum of
        squares plus rho |theta - theta_0|^2 / 2: without a ridge the outputs on the data are
        f_t = Y + exp(-K t) (f_0 - Y). Gradient descent of steps eta is there after t / eta steps,
        as long as eta is below 2 / lambda_max(K). For a mean over N examples t and 1 / rho count N
        times less. In the limit it is kernel ridge regression.

        Args:
            x, y: inputs and targets, floating-point numbers like the outputs; x as in `ntk`. None:
                the batches of the risk. Of several processes each has its part.
            ridge: rho >= 0, in the units of K: its mean diagonal is `trace(K).value / K.shape[0]`.
                With 0, the limit is the least change that fits best.
            time: t; default the limit.
            preconditioner: of the ridge system. "auto": "trace-kernel" for more than one output an
                example, else "nystrom", where there are fewer outputs than parameters; "nystrom" of
                J'J where there are fewer parameters. Other names and operators: as in `solve`, for
                K + rho I (or J'J + rho I). None: none. Without a ridge, or for a time, there is
                none.
            rtol: of the residual of the system; without a ridge as of `LSMR`, and for a time as of
                `matrix_function`.
            max_products: limit; for a time also the number of vectors held, default 200.
            generator: of the preconditioner. With a checkpoint and none given, its numbers are the
                same in every call.
            progress, checkpoint: as in `solve`; a fit for a time has no checkpoint.

        Returns:
            LinearisedFit, with `predict(x2)`; of a K too ill-conditioned for the tolerance
            `converged` is False, and a warning says so.

        Cost: the products of the system, a product with J' to come back from the outputs. Memory:
            the residuals of a gradient, a few vectors, and the sketch of the preconditioner, at
            most 160 of N entries.

        References: Lee et al. 2019, arXiv:1902.06720 (linearised training); Frangella, Tropp &
            Udell 2023, doi:10.1137/21M1466244 (Nystrom).

        >>> x = torch.tensor([[1.0], [2.0]])
        >>> model, zero = torch.nn.Linear(1, 1, bias=False), {"weight": torch.zeros(1, 1)}
        >>> fit = linearised(model, zero).fit(x, 3 * x, ridge=5.0)    # 3 (1 + 4) / (1 + 4 + 5)
        >>> fit.predict(torch.ones(1, 1))
        tensor([[1.5000]])
        """
        _check_numbers(ridge, time)
        _check_is_used(preconditioner, ridge, time)
        _check_checkpoint(checkpoint, time)
        check_tolerances(rtol=rtol)
        risk = risk_of(self.g, self.params, x, y)
        r = residual_of(risk, self.params)
        J = jacobian_operator(risk, self.params)
        if not J.codomain.all_finite(r):
            raise NonFiniteError(
                expected="finite outputs and targets",
                got="NaN or Inf in Y - f_0",
                remedy="Look at the model and the data.",
            )
        numbers = same_generator(generator, checkpoint)
        step = Step(J, r, ridge, rtol, max_products, numbers, progress, checkpoint)
        method = Ridge(preconditioner) if time == math.inf else Flow(time)
        found = method.change(step)
        if not found.converged:
            warn(f"The fit is not exact. {found.status.value}")
        return LinearisedFit(
            J.domain.unflatten(found.change),
            J.codomain.norm(r),
            "outputs" if step.in_outputs else "parameters",
            found.products,
            found.converged,
            found.status,
            self,
        )


@public("hesse.apps.linearised(g, params)")
def linearised(
    g: Risk | nn.Module | Callable[[Any, Any], Any], params: Tree | None = None
) -> Linearised:
    r"""The model linearised at theta_0, to be fitted in closed form.

    $$ f(x) = f_0(x) + J(x)\, (\theta - \theta_0), \qquad J = \frac{df}{d\theta} $$

    What a wide network does in training, and a test of whether a narrower one does the same. Its
    `fit` takes the squared loss; cross entropy has no closed form.

    Args:
        g, params: as in `ntk`.

    Returns:
        Linearised, with a method `fit`, whose result has a method `predict`.

    Raises:
        HesseError: no parameters; as `jacobian_operator`.

    >>> linearised(torch.nn.Linear(2, 1))
    Linearised(Linear, 3)
    """
    params = point_of_model(g, params)
    space = _space(g, params)
    if not (isinstance(g, Risk) or callable(g)):
        jacobian_of(g, params, ())  # raises
    return Linearised(g, space.copy(params))


def _space(g: Any, params: Tree) -> Space:
    return Space.of(params, what="params", ranks=g.ranks if isinstance(g, Risk) else None)


def _added(f: Any, moved: Any) -> Any:
    space = Space.of(f, what="outputs")
    return space.unflatten(space.flatten(f) + space.flatten(moved))


def _check_numbers(ridge: float, time: float) -> None:
    if not (is_number(ridge) and 0.0 <= ridge < math.inf):
        raise ArgumentError(
            expected="ridge, the rho >= 0 of (K + rho I)",
            got=repr(ridge),
            remedy="Leave it out for none; 1e-3 of the mean diagonal of K is a usual one.",
        )
    if not (is_number(time) and time > 0.0):
        raise ArgumentError(
            expected="time > 0, the number of steps times the learning rate",
            got=repr(time),
            remedy="Leave it out for the limit.",
        )


def _check_checkpoint(checkpoint: FilePath, time: float) -> None:
    if checkpoint is not None and time < math.inf:
        raise ArgumentError(
            expected="no checkpoint of a fit for a time, which takes some 200 products",
            got=f"checkpoint={str(checkpoint)!r}, time={time:g}",
            remedy="Leave it out, or leave out the time for the limit.",
        )


def _check_is_used(preconditioner: Any, ridge: float, time: float) -> None:
    if ridge > 0.0 and time == math.inf:
        return
    if preconditioner is None or (isinstance(preconditioner, str) and preconditioner == "auto"):
        return
    raise ArgumentError(
        expected="a ridge > 0, and no time, for a preconditioner",
        got=f"ridge={ridge:g}, time={time:g}, where no system is solved that has one",
        remedy="Leave out the preconditioner.",
    )
